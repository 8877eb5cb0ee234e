"""dvc.yaml, rendered from the layout and from what each stage imports: `python -m pipeline.dvc_file` rewrites it.

DVC does not see that code changed unless the code is a dependency. So each stage depends on every first-party file
it can load: the transitive closure of its imports, those inside functions included, with the packages around them
and the templates beside them. The files are parsed, never imported.
"""

import ast
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from pipeline.errors import WorkspaceError
from pipeline.layout import FILES, STAGES, Stage, find_root
from pipeline.records import checksum_file, replacing_file

DVC_FILE = "dvc.yaml"
METRICS = frozenset({"metrics"})  # what `dvc metrics show` reads
PLOTS = frozenset({"plots", "pictures"})  # what `dvc plots show` draws: tables, and pictures as they are

_HEADER = """\
# Written by `python -m pipeline.dvc_file` from pipeline/layout.py and the imports of each stage; a test holds it current.
# The units are <stage>@<task>, one for each task of params.yaml: `dvc repro tune@tweet_sentiment`.

stages:
"""


def render(root: Path) -> str:
    """The text of dvc.yaml for the code below `root`; raises WorkspaceError when a stage has no module."""
    return _HEADER + "\n".join(_render_stage(root, stage) for stage in STAGES)


def stage_code(root: Path, stage: Stage) -> tuple[str, ...]:
    """Every first-party file that running `stage` can load, as sorted paths relative to `root`."""
    entry = f"pipeline.stages.{stage.name}"
    if _source(root, entry) is None:
        raise WorkspaceError(f"Stage {stage.name} has no module {entry}: write pipeline/stages/{stage.name}.py with a function `run`.")
    modules = import_closure(root, ("pipeline.__main__", entry))
    return tuple(sorted({path.relative_to(root).as_posix() for path in (*modules.values(), *_package_data(root, modules))}))


def import_closure(root: Path, entries: tuple[str, ...]) -> dict[str, Path]:
    """Modules below `root` that importing `entries` and calling all their functions can load, each with its file."""
    found: dict[str, Path] = {}
    pending = list(entries)
    while pending:
        name = pending.pop()
        source = _source(root, name)
        if name in found or source is None:
            continue
        found[name] = source
        pending.extend(_packages_around(name))
        pending.extend(_imported_names(name, source))
    return found


def main() -> int:
    """Rewrite dvc.yaml in the workspace around the current folder."""
    root = find_root(Path.cwd())
    text = render(root)
    with replacing_file(root / DVC_FILE) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return 0


def _render_stage(root: Path, stage: Stage) -> str:
    outputs = {
        "outs": [name for name in stage.outputs if name not in METRICS | PLOTS],
        "metrics": [name for name in stage.outputs if name in METRICS],
        "plots": [name for name in stage.outputs if name in PLOTS],
    }
    lists: dict[str, list[str]] = {
        "deps": [*stage_code(root, stage), *tracked_paths(stage.inputs, "${key}")],
        "params": [f"{side}.{section}" for section in stage.sections for side in ("defaults", "tasks.${key}")],
        **{kind: list(tracked_paths(names, "${key}")) for kind, names in outputs.items()},
    }
    lines = [f"  {stage.name}:", "    foreach: ${tasks}", "    do:", f"      cmd: python -m pipeline {stage.name} --task ${{key}}"]
    for kind, entries in lists.items():
        lines.extend([f"      {kind}:", *(f"        - {entry}" for entry in entries)] if entries else [])
    return "\n".join(lines) + "\n"


def tracked_paths(names: Iterable[str], task: str) -> Iterator[str]:
    """The files as DVC tracks them: each Parquet file with its checksum, so that the two are restored together."""
    for name in names:
        path = Path(FILES[name].format(task=task))
        yield path.as_posix()
        if path.suffix == ".parquet":
            yield checksum_file(path).as_posix()


def _source(root: Path, module: str) -> Path | None:
    """The file of a first-party module, or None when `module` is not one (third-party, or a name inside a module)."""
    base = root.joinpath(*module.split("."))
    candidates = (base / "__init__.py", base.with_name(f"{base.name}.py"))
    return next((path for path in candidates if path.is_file()), None)


def _packages_around(module: str) -> Iterator[str]:
    parts = module.split(".")
    return (".".join(parts[:end]) for end in range(1, len(parts)))


def _imported_names(module: str, source: Path) -> Iterator[str]:
    """Absolute names that the import statements of `source` mention; `from a import b` may mean the module a.b."""
    package = module.split(".") if source.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"), str(source))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            yield origin
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def _package_data(root: Path, modules: Mapping[str, Path]) -> Iterator[Path]:
    """Templates and styles of the packages in `modules`, as pyproject.toml declares them for the installed package."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    declared: dict[str, list[str]] = project["tool"]["setuptools"]["package-data"]
    for package, patterns in declared.items():
        if package in modules:
            folder = modules[package].parent
            yield from (path for pattern in patterns for path in folder.glob(pattern))


if __name__ == "__main__":
    sys.exit(main())
