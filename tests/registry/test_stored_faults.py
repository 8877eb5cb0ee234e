"""Whatever happens to a stored file, no load goes through: 1,000 flipped bits, 500 truncations, files added, missing or linked."""

import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import BundleError
from pipeline.manifest import sealed, verify_bundle
from pipeline.records import sha256_file, write_json
from pipeline.registry import pyfunc, registry
from pipeline.registry.model_files import LIST_FILE, verify_model_files
from tests.registry.registry_workspace import TASK, Workspace
from tests.registry.signing_keys import make_keys
from tests.registry.stored_faults import copy_of, faults, stored_files

EVERY = {"bit": 1000, "truncated": 500, "added": 60, "missing": 60, "linked": 60}
FEW = {"bit": 240, "truncated": 120, "added": 24, "missing": 24, "linked": 24}
ARTEFACTS = {
    *("adapter_model.safetensors", "adapter_config.json", "template.json", "verbalizers.json", "manifest.json", "manifest.sig"),
    *("MLmodel", "requirements.txt", "conda.yaml", "python_env.yaml", "input_example.json", "serving_input_example.json", LIST_FILE),
}


@pytest.fixture
def stored(workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a registered and signed version; loading its soft prompt would fail the test with an ImportError."""
    private, _ = make_keys(tmp_path)
    monkeypatch.setenv("PROMPTMILL_SIGNING_KEY", str(private))
    version = workspace.register()
    monkeypatch.setitem(sys.modules, "pipeline.engine.predicting", None)
    model = workspace.stored_bundle(version).parents[1]
    assert {path.name for path in stored_files(model)} == ARTEFACTS
    return model


def refused_by_the_loader(model: Path, counts: dict[str, int]) -> Counter[str]:
    """What the loader refuses, in a folder that MLflow has already read; every message must name the file."""
    refused: Counter[str] = Counter()
    for kind, file in faults(model, counts, seed=1):
        if file.name == LIST_FILE and kind == "missing":
            verify = lambda: verify_model_files(model, "0" * 64)  # noqa: E731  a folder without a list is one of an earlier promptmill
        else:
            verify = lambda: pyfunc._load_pyfunc(str(model / "data" / TASK))  # noqa: E731
        with pytest.raises(BundleError) as raised:
            verify()
        assert file.name in str(raised.value), (kind, file, str(raised.value))
        refused[kind] += 1
    return refused


def test_a_few_hundred_faults_are_refused_before_the_soft_prompt_is_read(stored: Path, tmp_path: Path) -> None:
    model = copy_of(stored, tmp_path / "copy")
    assert refused_by_the_loader(model, FEW) == FEW
    with pytest.raises(ImportError):  # undamaged it is loaded
        pyfunc._load_pyfunc(str(model / "data" / TASK))


@pytest.mark.faults
def test_every_fault_is_refused_by_the_loader(stored: Path, tmp_path: Path, count: Callable[[str], None]) -> None:
    refused = refused_by_the_loader(copy_of(stored, tmp_path / "copy"), EVERY)
    count(f"refused {dict(refused)} of {EVERY}")
    assert refused == EVERY


@pytest.mark.faults
def test_every_fault_of_the_store_is_refused_after_the_download(
    workspace: Workspace, stored: Path, tmp_path: Path, count: Callable[[str], None]
) -> None:
    """A link in the store arrives as the file it leads to, which is verified like any other: there is nothing to refuse."""
    counts = {kind: count for kind, count in EVERY.items() if kind != "linked"}
    refused: Counter[str] = Counter()
    for kind, file in faults(stored, counts, seed=2):
        with pytest.raises(BundleError) as raised:
            registry.download_bundle(root=workspace.root, task=TASK, version=1, destination=tmp_path / "bundle")
        assert file.name in str(raised.value), (kind, file, str(raised.value))
        refused[kind] += 1
    count(f"refused {dict(refused)} of {counts}")
    assert refused == counts
    verify_bundle(registry.download_bundle(root=workspace.root, task=TASK, version=1, destination=tmp_path / "bundle"))


def test_a_bundle_of_a_workspace_is_protected_without_a_registry(workspace: Workspace, tmp_path: Path) -> None:
    """The stages have no registered hash: the manifest's own hash and layout must give each fault away."""
    bundle = copy_of(workspace.layout.path("bundle"), tmp_path / "bundle")
    refused: Counter[str] = Counter()
    for kind, file in faults(bundle, FEW, seed=3):
        with pytest.raises(BundleError) as raised:
            verify_bundle(bundle)
        assert file.name in str(raised.value), (kind, file, str(raised.value))
        refused[kind] += 1
    assert refused == FEW


def test_a_list_of_files_cannot_be_swapped_with_the_files(workspace: Workspace, stored: Path, tmp_path: Path) -> None:
    requirements = stored / "requirements.txt"
    requirements.write_text("something-else\n", encoding="utf-8")
    listed = json.loads((stored / LIST_FILE).read_text(encoding="utf-8"))
    write_json(stored / LIST_FILE, sealed({"files": listed["files"] | {"requirements.txt": sha256_file(requirements)}}))
    verify_model_files(stored)
    with pytest.raises(BundleError, match=rf"{LIST_FILE} is missing or was altered"):
        registry.download_bundle(root=workspace.root, task=TASK, version=1, destination=tmp_path / "bundle")
