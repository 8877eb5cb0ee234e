"""A version that answers in free text: `why` has something to say about it, `compare` and `evaluate` say what they cannot do."""

import json
from pathlib import Path

import pytest

from flows import cli
from pipeline.manifest import write_manifest
from pipeline.records import write_json
from tests.registry.registry_workspace import TASK, Workspace


@pytest.fixture
def written(workspace: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The checkout with one registered version that answers in text; returns a CSV file of rows."""
    bundle = workspace.layout.path("bundle")
    (bundle / "manifest.json").unlink()
    write_json(bundle / "verbalizers.json", {})
    write_json(bundle / "generation.json", {"maximum_new_tokens": 8})
    write_manifest(bundle, {"task": TASK, "fields": ["text"], "labels": [], "kind": "generation"})
    assert workspace.register() == 1
    monkeypatch.chdir(workspace.root)
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label,prediction\na,b,b\n", encoding="utf-8")
    return rows


@pytest.mark.parametrize(
    "arguments", [("evaluate", f"{TASK}@1", "--data", "ROWS"), ("compare", f"{TASK}@1", "ROWS"), ("compare", f"{TASK}@1", f"{TASK}@1")]
)
def test_what_needs_labels_is_refused_with_what_to_do(
    written: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    assert cli.main([str(written) if word == "ROWS" else word for word in arguments]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert f"{TASK} version 1 answers free text and has no labels to measure it by. Name a version that labels." in said.err


@pytest.mark.usefixtures("written")
def test_why_explains_its_gate_like_any_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["why", f"{TASK}@1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["decision"] == "promote"
