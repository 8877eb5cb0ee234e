"""`promptmill run` from params.yaml to champion, in processes of its own: real DVC, Prefect, MLflow and engine, prepared stage outputs."""

import csv
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest
from prefect import State, flow

from flows import cli
from flows.handled import handled_version
from flows.predict import LONGEST_CELL
from flows.retrain import retrain
from flows.services import running, version_service
from flows.tasks import check
from pipeline.errors import PromptmillError, WorkspaceError
from pipeline.layout import STAGES, Layout
from pipeline.registry.check_version import ask, check_answers
from pipeline.registry.connection import connect
from pipeline.registry.registry import list_versions
from tests.flows.data_workspace import commit
from tests.flows.flow_workspace import PREPARED, REASON, environment, living, make_prepared, prepare, promptmill
from tests.registry.registry_workspace import LABELS, TASK

if TYPE_CHECKING:
    from pipeline.engine.predicting import Predictor

Promoted = tuple[Path, subprocess.CompletedProcess[str]]
Inside = Callable[..., tuple[int, str, str]]

STAGE_NAMES = [stage.name for stage in STAGES]
STEPS = ["record the run", "register the version", "check the version", "publish the verdict"]
TEXTS = ["thank you for the lovely flight", "my bag is lost, and nobody said a word about it; boarding starts at gate four"]


def query(root: Path, statement: str) -> list[tuple[Any, ...]]:
    """Rows of the Prefect database that the run's own server left behind."""
    database = root / ".promptmill" / "prefect" / "prefect.db"
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        found = connection.execute(statement).fetchall()
    connection.close()
    return found


def last_flow_run(root: Path) -> tuple[str, str, str, set[tuple[str, str]]]:
    """Name, state type, state name, and (task run, state) of the latest flow run."""
    ((identity, name, kind, state),) = query(root, "SELECT id, name, state_type, state_name FROM flow_run ORDER BY created DESC LIMIT 1")
    tasks = {(task, how) for owner, task, how in query(root, "SELECT flow_run_id, name, state_name FROM task_run") if owner == identity}
    return name, kind, state, tasks


def completed(*names: str) -> set[tuple[str, str]]:
    return {(name, "Completed") for name in names}


def versions(root: Path) -> list[dict[str, Any]]:
    return list_versions(root=root, task=TASK)


@pytest.fixture(scope="module")
def promoted(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path) -> Promoted:
    """A checkout after its first `promptmill run`; tests must leave its registry as it is."""
    root = make_prepared(tmp_path_factory.mktemp("promoted") / "a checkout", tiny_bundle)
    return root, promptmill("run", TASK, folder=root)


@pytest.fixture(autouse=True)
def fresh_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let MLflow open its database anew each time: a pooled connection would go on reading the file that `changeable` replaced."""
    monkeypatch.setenv("MLFLOW_SQLALCHEMYSTORE_POOLCLASS", "NullPool")


@pytest.fixture
def changeable(promoted: Promoted, tmp_path: Path) -> Iterator[Path]:
    """The checkout after its first run, to change at will: it is put back as it was. (MLflow stores absolute paths, so a copy will not do.)"""
    root, _ = promoted
    shutil.copytree(root, tmp_path / "kept", symlinks=True)
    yield root
    shutil.rmtree(root)
    shutil.copytree(tmp_path / "kept", root, symlinks=True)


@pytest.fixture
def inside(promoted: Promoted, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command line in this process, in the checkout: exit code, stdout and stderr."""
    monkeypatch.chdir(promoted[0])
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(arguments)
        return code, *capsys.readouterr()

    return run


def test_a_run_ends_with_a_champion_and_says_where_to_look(promoted: Promoted) -> None:
    root, done = promoted
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith("[")] == [
        *(f"[{number}/{len(STAGE_NAMES)}] {name}" for number, name in enumerate(STAGE_NAMES, 1)),
        *("[record] the run, in MLflow", "[register] the tuned prompt", f"[check] {TASK} version 1 answers in a fresh process"),
        f"[promote] {TASK} version 1",
    ]
    assert "accuracy  PASS     0.625  0.525 to 0.725  100   0.9" in done.stdout
    assert f"PROMOTED: {TASK} version 1 is champion." in done.stdout
    card = next(line.split()[-1] for line in done.stdout.splitlines() if line.startswith("prompt card"))
    assert (root / card).is_file()
    assert f'promptmill predict {TASK} --text "..."' in done.stdout
    (version,) = versions(root)
    assert (version["version"], version["aliases"], version["gate_decision"]) == (1, ["challenger", "champion"], "promote")
    assert last_flow_run(root) == (
        f"retrain-{TASK}",
        "COMPLETED",
        "Completed",
        completed(*(f"{name}-{TASK}" for name in STAGE_NAMES), *STEPS, "promote"),
    )
    assert all(f'"promptmill-task:{TASK}"' in tags for (tags,) in query(root, "SELECT tags FROM flow_run"))
    assert query(root, "SELECT DISTINCT tags FROM task_run") == [("[]",)], "Prefect asks for the limits of each"
    assert sorted(query(root, "SELECT key, type FROM artifact")) == [
        ("data-tweet-sentiment", "markdown"),
        ("gate-tweet-sentiment", "table"),
        ("verdict-tweet-sentiment", "markdown"),
    ]
    assert ("2 rows answered",) in [(message.partition(":")[0],) for (message,) in query(root, "SELECT message FROM log")]
    assert "Traceback" not in done.stderr
    assert "Error logging to API" not in done.stderr


def test_a_second_run_reuses_everything_without_prefect(promoted: Promoted) -> None:
    root, _ = promoted
    before = query(root, "SELECT count(*) FROM flow_run")
    done = promptmill("run", TASK, folder=root)
    assert done.returncode == 0, done.stderr
    assert f"Nothing changed: reused all {len(STAGES)} stages ({', '.join(STAGE_NAMES)})," in done.stderr
    assert f"run {versions(root)[0]['run_id']} and version 1." in done.stderr
    assert f"PROMOTED: {TASK} version 1 is champion." in done.stdout
    assert "Starting" not in done.stderr
    assert query(root, "SELECT count(*) FROM flow_run") == before
    assert len(versions(root)) == 1


def test_predict_answers_as_the_bundle_does(promoted: Promoted, tiny_predictor: "Predictor", tmp_path: Path) -> None:
    root, _ = promoted
    expected = tiny_predictor.predict([{"text": text} for text in TEXTS])
    done = promptmill("predict", TASK, "--text", TEXTS[0], "--text", TEXTS[1], "--format", "json", folder=root)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["task"], found["version"], [row["text"] for row in found["predictions"]]) == (TASK, 1, TEXTS)
    for row, probabilities in zip(found["predictions"], expected, strict=True):
        np.testing.assert_allclose(list(row["probabilities"].values()), probabilities, atol=1e-6)
        assert row["label"] == LABELS[int(probabilities.argmax())]

    (tmp_path / "in.csv").write_text(f'id,text\n7,"{TEXTS[0]}"\n8,"{TEXTS[1]}"\n', encoding="utf-8")
    uri = f"sqlite:///{root}/.promptmill/mlflow/mlflow.db"
    command = [sys.executable, "-m", "flows.cli", "predict", TASK, "--file", "in.csv", "--out", "out.csv", "--version", "challenger"]
    outside = subprocess.run(
        command, cwd=tmp_path, env={**environment(), "MLFLOW_TRACKING_URI": uri}, capture_output=True, text=True, check=False
    )
    assert outside.returncode == 0, outside.stderr
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["id"], row["text"]) for row in rows] == [("7", TEXTS[0]), ("8", TEXTS[1])]
    np.testing.assert_allclose([[float(row[f"p.{label}"]) for label in LABELS] for row in rows], expected, atol=1e-5)
    assert [row["label"] for row in rows] == [row["label"] for row in found["predictions"]]


def test_predict_shows_a_table_and_refuses_bad_input(inside: Inside, tmp_path: Path) -> None:
    code, out, _ = inside("predict", TASK, "--text", "x " * LONGEST_CELL)
    header, row = out.splitlines()
    assert code == 0
    assert header.split() == ["text", "label", *(f"p.{label}" for label in LABELS)]
    assert row.startswith("x x x")
    assert "…" in row
    (tmp_path / "in.csv").write_text("tweet\nhello\n", encoding="utf-8")
    code, _, err = inside("predict", TASK, "--file", str(tmp_path / "in.csv"), "--out", str(tmp_path / "out.csv"))
    assert (code, err) == (1, f"error: {tmp_path}/in.csv lacks the columns ['text']; it has ['tweet']. Add or rename them.\n")
    assert not (tmp_path / "out.csv").exists()
    code, _, err = inside("predict", TASK, "--text", "a", "--version", "9")
    assert code == 1
    assert "has no version 9" in err


def test_a_refused_version_is_registered_but_not_promoted(changeable: Path, inside: Inside, tiny_bundle: Path) -> None:
    root = changeable
    prepare(root, tiny_bundle, "refuse")
    first = promptmill("run", TASK, folder=root)
    assert first.returncode == 3, first.stderr
    assert f"NOT PROMOTED: {TASK} version 2 was refused by the gate:\n  {REASON}" in first.stdout
    name, kind, state, tasks = last_flow_run(root)
    assert (name, kind, state) == (f"retrain-{TASK}", "COMPLETED", "NotPromoted")
    assert tasks == completed(*(f"{name}-{TASK}" for name in STAGE_NAMES), *STEPS)
    assert [(v["version"], v["aliases"], v["gate_decision"]) for v in versions(root)] == [
        (2, ["challenger"], "refuse"),
        (1, ["champion"], "promote"),
    ]

    code, _, err = inside("run", TASK)
    assert code == 3
    assert f"Nothing changed: reused all {len(STAGES)} stages" in err
    code, _, err = inside("promote", TASK, "challenger")
    assert code == 3
    assert REASON in err
    assert inside("promote", TASK, "1")[:2] == (0, f"{TASK} version 1 already is champion.\n")
    shown = json.loads(inside("show", f"{TASK}@challenger", "--json")[1])
    assert (shown["version"], shown["gate_reasons"]) == (2, [REASON])
    assert "gate_decision: promote\n" in inside("show", TASK)[1]
    code, _, err = inside("rollback", TASK)
    assert code == 1
    assert "had no champion before version 1" in err
    code, out, _ = inside("list")
    assert code == 0
    assert [line.split()[:2] for line in out.splitlines()] == [["task", "version"], [TASK, "2"], [TASK, "1"]]


@pytest.mark.slow
def test_a_version_that_only_a_person_can_decide_on_is_not_promoted(changeable: Path, inside: Inside, tiny_bundle: Path) -> None:
    root = changeable
    prepare(root, tiny_bundle, "ask")
    done = promptmill("run", TASK, folder=root)
    assert done.returncode == 3, done.stderr
    assert f"NOT PROMOTED: {TASK} version 2 waits for a person: the gate could not decide:\n  {REASON}" in done.stdout
    assert last_flow_run(root)[2] == "NotPromoted"
    assert [(v["version"], v["aliases"], v["gate_decision"]) for v in versions(root)] == [
        (2, ["challenger"], "ask"),
        (1, ["champion"], "promote"),
    ]
    code, _, err = inside("run", TASK)
    assert code == 3
    assert f"Nothing changed: reused all {len(STAGES)} stages" in err
    assert inside("promote", TASK, "2")[0] == 3


def test_a_version_waits_for_a_person_and_the_flow_ends(changeable: Path, inside: Inside, tiny_bundle: Path) -> None:
    root = changeable
    text = (root / "params.yaml").read_text(encoding="utf-8")
    (root / "params.yaml").write_text(text.replace("    approval: auto ", "    approval: manual "), encoding="utf-8")
    prepare(root, tiny_bundle, "promote", champion=1)
    first = promptmill("run", TASK, folder=root)
    assert first.returncode == 6, first.stderr
    assert f"WAITING: {TASK} version 2 needs a person's approval" in first.stdout
    name, kind, state, tasks = last_flow_run(root)
    assert (name, kind, state) == (f"retrain-{TASK}", "COMPLETED", "WaitingForApproval")
    assert tasks == completed(*(f"{name}-{TASK}" for name in STAGE_NAMES), *STEPS, "ask for approval")
    assert ("approval-tweet-sentiment", "markdown") in query(root, "SELECT key, type FROM artifact")
    assert {v["version"]: v["aliases"] for v in versions(root)} == {2: ["challenger"], 1: ["champion"]}

    code, out, err = inside("run", TASK)
    assert (code, "Nothing changed" in err) == (6, True)
    assert f"promptmill approve {TASK} 2 --reason" in out
    assert inside("promote", TASK, "2")[0] == 6
    code, _, err = inside("approve", TASK, "2", "--reason", "fine", "--manifest", "0" * 64)
    assert code == 1
    assert f"the approval is for {'0' * 64}" in err
    assert inside("approve", TASK, "2", "--reason", "Read 50 answers", "--by", "Ada")[:2] == (
        0,
        f"{TASK} version 2 is champion now (before: version 1).\n",
    )
    rows = [line.split() for line in inside("history", TASK)[1].splitlines()[1:]]
    assert (rows[0][0], rows[0][2]) == ("2", "-")
    assert "Ada" in rows[0]
    assert rows[0][-3:] == ["Read", "50", "answers"]
    assert [row[0] for row in rows] == ["2", "1"]
    assert inside("doctor", TASK)[0] == 0
    assert [line.split()[0] for line in inside("prune", TASK)[1].splitlines()] == ["version", "2", "1"]
    assert inside("run", TASK)[0] == 0


@pytest.mark.slow
def test_a_version_that_was_rolled_back_is_not_promoted_again_by_a_run(changeable: Path, inside: Inside, tiny_bundle: Path) -> None:
    root = changeable
    prepare(root, tiny_bundle, "promote", champion=1)
    assert promptmill("run", TASK, folder=root).returncode == 0
    assert inside("rollback", TASK)[:2] == (0, f"{TASK} version 1 is champion now (before: version 2).\n")
    code, out, err = inside("run", TASK)
    assert code == 0
    assert "and version 2." in err
    assert f"{TASK} version 2 was champion and is not any more; `promptmill promote {TASK} 2` makes it so again." in out
    assert {v["version"]: v["aliases"] for v in versions(root)} == {2: ["challenger"], 1: ["champion"]}


@pytest.mark.slow
def test_without_mlflow_the_record_is_spooled_and_delivered_before_the_version_is_made(
    changeable: Path, inside: Inside, tiny_bundle: Path
) -> None:
    root = changeable
    prepare(root, tiny_bundle, "promote", champion=1)
    away = promptmill("run", TASK, folder=root, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert away.returncode == 75, away.stderr
    assert away.stderr.splitlines()[-1].startswith("error: MLflow at http://127.0.0.1:9 does not answer. All stages are done and kept")
    name, kind, state, tasks = last_flow_run(root)
    assert (name, kind, state) == (f"retrain-{TASK}", "COMPLETED", "Spooled")
    assert tasks == completed(*(f"{name}-{TASK}" for name in STAGE_NAMES), "spool the record") | {("record the run", "Failed")}
    assert [version["version"] for version in versions(root)] == [1]
    (folder,) = (root / ".promptmill" / "spool" / TASK).iterdir()
    code, out, _ = inside("sync")
    assert (code, out.splitlines()[-1]) == (0, "1 delivered, the spool is empty.")
    assert not folder.exists()
    done = promptmill("run", TASK, folder=root)
    assert done.returncode == 0, done.stderr
    assert "was already recorded" in done.stderr
    assert {v["version"]: v["aliases"] for v in versions(root)} == {2: ["challenger", "champion"], 1: []}
    assert versions(root)[0]["stage_key"] == folder.name


@pytest.mark.usefixtures("prefect_server")
def test_a_scheduled_run_with_nothing_to_do_ends_unchanged(changeable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = changeable
    monkeypatch.chdir(root)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)
    state: State[Any] = retrain(TASK, str(root), unless_unchanged=True, return_state=True)
    assert (state.is_completed(), state.name) == (True, "Unchanged"), state.message
    assert state.result()["version"] == 1
    assert [version["version"] for version in versions(root)] == [1]
    (root / PREPARED / "noted").write_text("every stage depends on this folder", encoding="utf-8")
    assert handled_version(root, TASK) is None


@pytest.mark.usefixtures("prefect_server")
def test_a_version_is_served_before_the_alias_moves_and_not_once_it_has_it(
    changeable: Path, inside: Inside, capsys: pytest.CaptureFixture[str]
) -> None:
    root = changeable

    @flow(name="checking", persist_result=False)
    def checking(version: int) -> None:
        check(root, TASK, version)

    assert inside("promote", TASK, "1")[0] == 0
    checking(1)
    assert "not asked again: it is champion already, so no alias moves" in capsys.readouterr().err
    Layout(root, TASK).path("test").unlink()
    connect(root=root).client.delete_registered_model_alias(TASK, "champion")
    with pytest.raises(PromptmillError, match=r"test\.parquet does not exist"):
        checking(1)


def test_a_version_is_served_in_its_checkout_and_a_server_that_does_not_come_up_says_where_it_printed(
    promoted: Promoted, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, _ = promoted
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)
    log = root / ".promptmill" / "logs" / TASK / "check.log"
    ended = rf"The {TASK} version 99 server ended with exit code 1: .*not found. All it printed is in {re.escape(str(log))}"
    with pytest.raises(WorkspaceError, match=ended), running([version_service(root, TASK, 99)]):
        pass
    with running([version_service(root, TASK, 1)]) as (server,):
        assert psutil.Process(server.process.pid).cwd() == str(root), "a base model's relative path begins in the checkout"
        check_answers("version 1", [{"text": "x"}], ask(server.service.url, [{"text": TEXTS[0]}]))
    late = version_service(root, TASK, 1, start_seconds=0.5)
    with pytest.raises(WorkspaceError, match=r"did not answer on .*/ping within 0\.5 s"), running([late]):
        pass
    assert not [process.pid for process in psutil.process_iter(["cwd"]) if (process.info["cwd"] or "").startswith(str(root))]


@pytest.mark.slow
def test_uncommitted_changes_end_a_run_as_not_promoted_until_they_are_committed(changeable: Path, tiny_bundle: Path) -> None:
    root = changeable
    (root / ".gitignore").write_text("/.promptmill/\n", encoding="utf-8")
    commit(root, "first")
    prepare(root, tiny_bundle, "promote", champion=1)
    with (root / "copy_outputs.py").open("a") as code:
        code.write("# changed\n")
    done = promptmill("run", TASK, folder=root)
    assert done.returncode == 3, done.stderr
    reason = f"{TASK} version 2 was made with changes that are not committed"
    assert f"NOT PROMOTED: {reason}" in done.stdout
    name, kind, state, tasks = last_flow_run(root)
    assert (name, kind, state) == (f"retrain-{TASK}", "COMPLETED", "NotPromoted")
    assert tasks == completed(*(f"{name}-{TASK}" for name in STAGE_NAMES), *STEPS)
    assert reason in str(query(root, "SELECT message FROM flow_run_state WHERE name = 'NotPromoted' ORDER BY timestamp DESC LIMIT 1"))
    commit(root, "second")
    done = promptmill("run", TASK, folder=root)
    assert done.returncode == 0, done.stderr
    assert f"PROMOTED: {TASK} version 2 is champion." in done.stdout


def test_a_failing_stage_fails_the_run_with_its_own_message(changeable: Path) -> None:
    root = changeable
    (root / PREPARED / "tune.error").write_text("the loss is NaN at step 3. Lower tune.learning_rate.", encoding="utf-8")
    before = versions(root)
    done = promptmill("run", TASK, folder=root)
    message = f"error: stage tune of {TASK}: the loss is NaN at step 3. Lower tune.learning_rate."
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == message
    assert done.stderr.count("the loss is NaN") == 1
    name, kind, _, tasks = last_flow_run(root)
    assert (name, kind) == (f"retrain-{TASK}", "FAILED")
    assert tasks == completed(*(f"{stage}-{TASK}" for stage in STAGE_NAMES[: STAGE_NAMES.index("tune")])) | {(f"tune-{TASK}", "Failed")}
    assert versions(root) == before


@pytest.mark.parametrize("signal_number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_stopped_run_leaves_no_process_and_is_recorded_as_crashed(promoted: Promoted, tmp_path: Path, signal_number: int) -> None:
    """The signal goes to promptmill's whole process group, as a terminal's Ctrl-C does."""
    root = tmp_path / "w"
    shutil.copytree(promoted[0], root, ignore=shutil.ignore_patterns(".promptmill"))
    slow = "import os, pathlib, sys, time\npathlib.Path('group').write_text(str(os.getpgid(0)))\nsys.stderr.write('slow now\\n')\ntime.sleep(600)\n"
    (root / "copy_outputs.py").write_text(slow, encoding="utf-8")
    (root / PREPARED / "another").touch()
    command = [sys.executable, "-m", "flows.cli", "run", TASK]
    run = subprocess.Popen(command, cwd=root, env=environment(), stderr=subprocess.PIPE, start_new_session=True, text=True)
    assert run.stderr is not None
    with run.stderr:
        while "slow now" not in (line := run.stderr.readline()):
            assert line, "the run ended before its first stage began"
        os.killpg(run.pid, signal_number)
        rest = run.stderr.read()
    assert run.wait(timeout=120) == 128 + signal_number
    assert rest.strip().splitlines() == ["stopped; what was finished is kept, and the same command goes on from there"]
    assert living(int((root / "group").read_text())) == []
    assert last_flow_run(root)[1:3] == ("CRASHED", "Crashed")
