"""Which runs compare with which champion, and `promptmill data drift`: real DVC, MLflow and registry, prepared stage outputs."""

import json
import shutil
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows import data_drift
from flows.dvc_state import LOCK_FILE
from flows.reference import reference_is_stale
from flows.stage_process import run_stage
from flows.workspace import changed_stages
from pipeline.errors import DataDrifted, RegistryError, SourceError
from pipeline.layout import STAGES, Layout
from pipeline.params import load_task
from pipeline.records import read_json
from pipeline.registry import promotion, registry, tracking
from pipeline.registry.connection import connect
from pipeline.registry.reference import CHAMPION_FILE, registered_attempts
from tests.flows.flow_workspace import PREPARED, REPOSITORY, call, make_prepared
from tests.registry.registry_workspace import TASK, made_up_rows, write_bundle, write_data_profile


@pytest.fixture(scope="module")
def promoted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout whose present outputs are version 1, the first champion: its reference says that there was none."""
    bundle = tmp_path_factory.mktemp("made") / "bundle"
    write_bundle(bundle, 1)
    root = make_prepared(tmp_path_factory.mktemp("checkout") / "checkout", bundle)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("PYTHONPATH", str(REPOSITORY))
        reproduce(root)
        make_champion(root)
    return root


@pytest.fixture
def checkout(promoted: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The promoted checkout as the current folder, with its reference as it was at the end."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.chdir(promoted)
    layout = Layout(promoted, TASK)
    kept = {path: path.read_bytes() for path in (layout.path("champion") / CHAMPION_FILE, layout.path("attempts"))}
    yield promoted
    for path, content in kept.items():
        path.write_bytes(content)


def reproduce(root: Path) -> None:
    """Bring every stage up to date at once: put the prepared outputs in their places and let DVC take them for its own."""
    for stage in STAGES:
        for path in (Layout(root, TASK).path(name) for name in stage.outputs):
            prepared = root / PREPARED / path.relative_to(root)
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(prepared, path) if prepared.is_dir() else shutil.copy(prepared, path)
            checksum = prepared.with_name(f"{prepared.name}.sha256")
            if checksum.is_file():
                shutil.copy(checksum, path.with_name(checksum.name))
    call(sys.executable, "-m", "dvc", "commit", "--quiet", "--force", folder=root)


def make_champion(root: Path) -> int:
    layout, lock = Layout(root, TASK), root / LOCK_FILE
    run = tracking.record_run(root=root, task=TASK, params=load_task(root / "params.yaml", TASK), layout=layout, lock=lock)
    version = registry.register_version(root=root, task=TASK, run_id=run.run_id, layout=layout, stage_key=run.stage_key)
    promotion.promote(root=root, task=TASK, version=version)
    return version


def drift(capsys: pytest.CaptureFixture[str], **given: Any) -> tuple[int, str]:
    options = Namespace(task=TASK, **{"against": None, "data": None, "json": False, **given})
    return data_drift.drift(options), capsys.readouterr().out


def test_a_champion_made_from_the_present_outputs_is_not_compared_with_itself(checkout: Path):
    assert changed_stages(checkout, TASK) == []
    assert read_json(Layout(checkout, TASK).path("champion") / CHAMPION_FILE)["version"] is None
    assert not reference_is_stale(checkout, TASK)


def test_once_anything_is_new_the_champion_is_the_reference(checkout: Path):
    assert reference_is_stale(checkout, TASK, forced=True), "a stage that is forced will make other outputs"
    note = checkout / PREPARED / "note"
    note.write_text("new")
    try:
        assert reference_is_stale(checkout, TASK)
        write_champion_of(checkout, 1)
        assert not reference_is_stale(checkout, TASK), "it is the champion's already"
        write_champion_of(checkout, 7)
        assert reference_is_stale(checkout, TASK)
    finally:
        note.unlink()


def test_an_attempt_since_is_no_reason_to_run_again_but_counts_once_anything_is_new(checkout: Path):
    """Each refused run registers a bundle; if that alone made the next run compare anew, versions would never end."""
    write_champion_of(checkout, 1)
    layout = Layout(checkout, TASK)
    test_sha256 = read_json(layout.path("split_report"))["splits"]["test"]["sha256"]
    recorded = registered_attempts(root=checkout, task=TASK, champion=1, test_sha256=test_sha256)
    assert recorded["registered"] == []
    layout.path("attempts").write_text(json.dumps({**recorded, "registered": [{"version": 2, "manifest_sha256": "a"}]}))
    changed = changed_stages(checkout, TASK)
    assert reference_is_stale(checkout, TASK) == bool(changed)
    assert reference_is_stale(checkout, TASK, forced=True)
    layout.path("attempts").write_text(json.dumps(recorded))
    assert not reference_is_stale(checkout, TASK, forced=True)


def write_champion_of(root: Path, version: int) -> None:
    layout = Layout(root, TASK)
    record = {"version": version, "manifest_sha256": "a", "reason": None}
    (layout.path("champion") / CHAMPION_FILE).write_text(json.dumps(record))
    layout.path("attempts").write_text(json.dumps(registered_attempts(root=root, task=TASK, champion=version, test_sha256="x")))


def test_a_forced_stage_runs_although_nothing_changed(checkout: Path):
    outcomes = [
        run_stage(root=checkout, task=TASK, stage="reference", screen=sys.stderr.buffer, force=force).outcome for force in (False, True)
    ]
    assert outcomes == ["unchanged", "run"]


def test_the_same_data_has_not_drifted(checkout: Path, capsys: pytest.CaptureFixture[str]):
    code, shown = drift(capsys)
    assert code == 0
    assert f"NO DRIFT: the data of {TASK} is like that of version 1." in shown
    assert [line.split()[0] for line in shown.splitlines()[1:3]] == ["labels", "length"]
    assert changed_stages(checkout, TASK) == [], "looking changes nothing"


def test_other_data_has_drifted_with_an_exit_code_of_its_own(checkout: Path, capsys: pytest.CaptureFixture[str]):
    layout = Layout(checkout / PREPARED, TASK)
    try:
        write_data_profile(layout, 11)
        code, shown = drift(capsys, against=1, json=True)
    finally:
        write_data_profile(layout, 1)
    assert code == DataDrifted.exit_code == 4
    report = json.loads(shown)
    assert (report["task"], report["verdict"], report["against"]["version"]) == (TASK, "FAIL", 1)
    failed = {check["name"] for check in report["checks"] if check["verdict"] == "FAIL"}
    assert failed >= {"labels", "vocabulary", "domain"}
    assert len(STAGES) > 4


def test_a_file_of_rows_can_be_compared(checkout: Path, capsys: pytest.CaptureFixture[str]):
    from tests.engine.tiny_models import save_model

    rows = made_up_rows(12).to_pandas()
    rows[["text"]].to_csv("lately.csv", index=False)
    (checkout / "model").mkdir()
    save_model("llama", checkout / "model")
    params = checkout / "params.yaml"
    before = params.read_text(encoding="utf-8")
    source = "base_model: {source: {kind: directory, id: tiny, path: model}}"
    assert "    base_model: {}\n" in before
    params.write_text(before.replace("    base_model: {}\n", f"    {source}\n"), encoding="utf-8")
    try:
        code, shown = drift(capsys, data=Path("lately.csv"))
        Path("other.csv").write_text("title\nx\n")
        with pytest.raises(SourceError, match=r"other\.csv lacks the columns \['text'\]; it has \['title'\]"):
            drift(capsys, data=Path("other.csv"))
    finally:
        params.write_text(before, encoding="utf-8")
    assert code == 4
    verdicts = {line.split("  ")[0]: line for line in shown.splitlines()}
    assert "FAIL" in verdicts["vocabulary"]
    assert "NOT APPLICABLE" in verdicts["labels"], "the file holds none"
    assert "NOT APPLICABLE" in verdicts["domain"], "the version was embedded by another base model"


def test_without_a_champion_there_is_nothing_to_compare_with(checkout: Path, capsys: pytest.CaptureFixture[str]):
    client = connect(root=checkout).client
    client.delete_registered_model_alias(TASK, "champion")
    try:
        with pytest.raises(RegistryError, match="nothing to compare with: no champion yet"):
            drift(capsys)
    finally:
        client.set_registered_model_alias(TASK, "champion", "1")


def test_the_command_line_knows_versions():
    import argparse

    with pytest.raises(argparse.ArgumentTypeError, match="'latest' is neither"):
        data_drift._selector("latest")
    assert [data_drift._selector(text) for text in ("champion", "12")] == ["champion", 12]
