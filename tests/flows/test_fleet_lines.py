"""What is written to the terminal while several tasks run at once."""

import json

import pytest

from flows.log_format import FORMAT_VARIABLE
from flows.terminal import lines_of, say, screen_of


def _written(capfd: pytest.CaptureFixture[str]) -> str:
    say("alone")
    with lines_of("anna"):
        say("  [1/17] ingest")
        with screen_of("ingest") as screen:
            screen.write(b"step 1\n")
            screen.flush()
    return capfd.readouterr().err


def test_lines_have_their_task_in_front_and_bars_are_not_shown(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FORMAT_VARIABLE, raising=False)
    assert _written(capfd) == "alone\nanna: [1/17] ingest\n"


def test_lines_of_json_name_their_task_and_the_stages_lines_are_kept(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FORMAT_VARIABLE, "json")
    lines = [json.loads(line) for line in _written(capfd).splitlines()]
    assert [(line.get("task"), line["message"]) for line in lines] == [(None, "alone"), ("anna", "[1/17] ingest"), ("anna", "step 1")]
