"""A retraining tells who watches how it went, whatever becomes of it; its steps are replaced here, they have tests of their own."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows import retrain as module
from flows.log_format import FORMAT_VARIABLE
from flows.metrics import FOLDER_VARIABLE
from flows.terminal import say

TASK = "tweet_sentiment"
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "params.yaml").write_bytes((REPOSITORY / "params.yaml").read_bytes())
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "metrics"))
    monkeypatch.setenv(FORMAT_VARIABLE, "json")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    steps: dict[str, Any] = {
        "stale_stages": lambda root, task: [],
        "run_stages": lambda *_, **__: say("the stages ran"),
        "record": lambda root, task: SimpleNamespace(run_id="r", stage_key="k"),
        "register": lambda *_: 7,
        "check": lambda *_: say("it answers"),
        "publish": lambda *_: None,
        "decide": lambda *_, **__: {"version": 7},
    }
    for name, step in steps.items():
        monkeypatch.setattr(module, name, step)
    return tmp_path


def figure(root: Path) -> str:
    text = (root / "metrics" / f"promptmill-{TASK}-run.prom").read_text(encoding="utf-8")
    return next(line for line in text.splitlines() if line.startswith("promptmill_run_succeeded"))


def test_a_run_that_ends_well(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert module.retrain.fn(TASK, str(checkout)) == {"version": 7}
    assert figure(checkout) == f'promptmill_run_succeeded{{task="{TASK}"}} 1.0'
    ran, answers = [json.loads(line) for line in capsys.readouterr().err.splitlines()][:2]
    assert (ran["message"], ran["task"]) == ("the stages ran", TASK)
    assert "version" not in ran
    assert (answers["message"], answers["version"]) == ("it answers", 7)
    assert (checkout / "metrics" / f"promptmill-{TASK}-status.prom").is_file()


def test_a_run_that_fails(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(module, "run_stages", full)
    with pytest.raises(OSError, match="the disk is full"):
        module.retrain.fn(TASK, str(checkout))
    assert figure(checkout) == f'promptmill_run_succeeded{{task="{TASK}"}} 0.0'
