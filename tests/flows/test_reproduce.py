"""Versions made again: real stages on a tiny base model, a clone of its own, and a mutation of each thing that can differ."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect import State
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

from flows.dvc_cache import cache_folder, cached_object
from flows.reproduce import NAME_NOT_REPRODUCED, reproduce
from flows.reproduction import reproduce_version
from pipeline.layout import Layout
from pipeline.records import read_json
from pipeline.registry.connection import connect
from pipeline.reproduction import EXACT, LINES, NOT_REPRODUCED, WITHIN_TOLERANCE
from tests.faults.tiny_checkout import MODEL, change, commit, git, make_checkout, record_and_register, run_stages
from tests.stages.conftest import TASK


@pytest.fixture(scope="module")
def checkout(repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with version 1, made from a clean commit; tests put back what they change."""
    root = make_checkout(repo_root, tmp_path_factory.mktemp("reproduce") / "checkout")
    run_stages(root)
    assert record_and_register(root) == 1
    return root


@pytest.fixture(autouse=True)
def fresh_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_SQLALCHEMYSTORE_POOLCLASS", "NullPool")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def sentence(record: dict[str, Any], name: str) -> str:
    return next(line["sentence"] for line in record["lines"] if line["name"] == name)


def task_runs(state: "State[Any]") -> dict[str, str | None]:
    """Name -> state of the tasks of a flow run, as the server knows them."""
    assert state.state_details.flow_run_id is not None
    with get_client(sync_client=True) as client:
        runs = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[state.state_details.flow_run_id])))
    return {run.name: run.state_name for run in runs}


@pytest.mark.usefixtures("prefect_server")
def test_a_version_is_made_again_to_the_last_bit_and_the_record_is_kept_beside_it(checkout: Path) -> None:
    """By the flow, under a Prefect server."""
    state: State[Any] = reproduce(TASK, 1, str(checkout), return_state=True)
    assert (state.name, task_runs(state)) == ("Completed", dict.fromkeys(LINES, "Completed"))
    record = state.result()
    assert [(line["name"], line["verdict"]) for line in record["lines"]] == [(name, "OK") for name in LINES], record
    assert (record["verdict"], record["failed_at"]) == (EXACT, None)
    client = connect(root=checkout).client
    version = client.get_model_version(TASK, "1")
    assert version.tags["promptmill.reproduced"] == EXACT
    (kept,) = (file.path for file in client.list_artifacts(version.run_id, "reproductions"))
    assert read_json(Path(client.download_artifacts(version.run_id, kept)))["lines"] == record["lines"]
    assert git(checkout, "status", "--porcelain", "--untracked-files=no") in ("", "M dvc.lock", " M dvc.lock")
    assert list((checkout / ".promptmill" / "reproductions").iterdir()) == []


def test_a_changed_row_is_named(checkout: Path) -> None:
    import pandas as pd

    outputs = yaml.safe_load((checkout / "dvc.lock").read_text())["stages"][f"split@{TASK}"]["outs"]
    path = cached_object(cache_folder(checkout), next(out["md5"] for out in outputs if out["path"].endswith("train.parquet")))
    before = path.read_bytes()
    frame = pd.read_parquet(path)
    frame.loc[0, "text"] = frame.loc[0, "text"] + "!"
    path.chmod(0o644)
    frame.to_parquet(path, index=False, compression="zstd")
    try:
        record = reproduce_version(checkout, TASK, 1)
    finally:
        path.write_bytes(before)
    assert (record["verdict"], record["failed_at"]) == (NOT_REPRODUCED, "data")
    assert "train.parquet has other bytes" in sentence(record, "data")


@pytest.mark.parametrize(
    ("section", "values", "named"),
    [
        ("tune", {"learning_rate": 0.06}, f"tasks.{TASK}.tune.learning_rate: recorded 0.05, found 0.06"),
        ("base_model", {"attention": "sdpa"}, f"tasks.{TASK}.base_model.attention: recorded None, found 'sdpa'"),
    ],
)
def test_a_changed_parameter_is_named(checkout: Path, section: str, values: dict[str, Any], named: str) -> None:
    first = git(checkout, "rev-parse", "HEAD")
    change(checkout, lambda sections: sections[section].update(values))
    other = commit(checkout, "another parameter")
    client = connect(root=checkout).client
    client.set_model_version_tag(TASK, "1", "promptmill.git_commit", other)
    try:
        record = reproduce_version(checkout, TASK, 1)
    finally:
        client.set_model_version_tag(TASK, "1", "promptmill.git_commit", first)
        git(checkout, "reset", "--hard", "--quiet", first)
    assert (record["verdict"], record["failed_at"]) == (NOT_REPRODUCED, "params")
    assert named in sentence(record, "params")


def test_changed_code_and_an_unknown_commit_are_named(checkout: Path) -> None:
    first = git(checkout, "rev-parse", "HEAD")
    module = checkout / "pipeline" / "engine" / "optimisation.py"
    module.write_text(module.read_text() + "\n# another line\n")
    other = commit(checkout, "other code")
    client = connect(root=checkout).client
    try:
        for sha, words in ((other, "pipeline/engine/optimisation.py at the recorded commit"), ("0" * 40, "try `git fetch`")):
            client.set_model_version_tag(TASK, "1", "promptmill.git_commit", sha)
            record = reproduce_version(checkout, TASK, 1)
            assert (record["verdict"], record["failed_at"]) == (NOT_REPRODUCED, "code")
            assert words in sentence(record, "code")
    finally:
        client.set_model_version_tag(TASK, "1", "promptmill.git_commit", first)
        git(checkout, "reset", "--hard", "--quiet", first)


def test_another_tokenizer_is_named(checkout: Path) -> None:
    path = checkout / MODEL / "tokenizer.json"
    before = path.read_text(encoding="utf-8")
    path.write_text(before.replace('"version"', ' "version"', 1), encoding="utf-8")
    try:
        record = reproduce_version(checkout, TASK, 1)
    finally:
        path.write_text(before, encoding="utf-8")
    assert (record["verdict"], record["failed_at"]) == (NOT_REPRODUCED, "base model")
    assert "tokenizer_sha256: recorded" in sentence(record, "base model")


@pytest.mark.faults
def test_another_instruction_set_is_said_aloud_and_never_exact(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = read_json(Layout(checkout, TASK).path("bundle") / "manifest.json")["hardware"]["cpu_capability"]
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default" if recorded != "DEFAULT" else "avx2")
    record = reproduce_version(checkout, TASK, 1)
    assert f"cpu_capability: recorded {recorded}" in sentence(record, "hardware")
    assert record["verdict"] in (WITHIN_TOLERANCE, NOT_REPRODUCED)
    assert record["verdict"] != EXACT


@pytest.mark.usefixtures("prefect_server")
def test_a_version_altered_in_the_store_is_refused_at_its_first_line(checkout: Path) -> None:
    """By the flow: the difference is its result, not its failure."""
    version = connect(root=checkout).client.get_model_version(TASK, "1")
    weights = next(Path(version.source.removeprefix("file://")).rglob("adapter_model.safetensors"))
    before = weights.read_bytes()
    weights.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    try:
        state: State[Any] = reproduce(TASK, 1, str(checkout), return_state=True)
    finally:
        weights.write_bytes(before)
    assert state.is_completed()
    assert (state.name, task_runs(state)) == (NAME_NOT_REPRODUCED, {"manifest": "Completed"})
    record = state.result()
    assert str(state.message) == record["lines"][-1]["sentence"]
    assert (record["verdict"], record["failed_at"], len(record["lines"])) == (NOT_REPRODUCED, "manifest", 1)


@pytest.mark.faults
def test_uncommitted_changes_are_kept_as_a_diff_and_made_again_from_it(checkout: Path) -> None:
    first = git(checkout, "rev-parse", "HEAD")
    change(checkout, lambda sections: sections["tune"].update(maximum_steps=6, evaluate_every=3))
    try:
        run_stages(checkout, "tune")
        number = record_and_register(checkout)
        client = connect(root=checkout).client
        tags = client.get_model_version(TASK, str(number)).tags
        assert (tags["promptmill.dirty"], tags["promptmill.git_commit"]) == ("true", first)
        record = reproduce_version(checkout, TASK, number)
        assert record["verdict"] == EXACT, record["lines"][-1]
        assert "with the recorded diff" in sentence(record, "code")
        other = commit(checkout, "what was run")
        assert record_and_register(checkout) == number
        tags = client.get_model_version(TASK, str(number)).tags
        assert (tags["promptmill.dirty"], tags["promptmill.git_commit"]) == ("false", other)
    finally:
        git(checkout, "reset", "--hard", "--quiet", first)
