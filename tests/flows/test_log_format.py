"""Lines for machines: each is one JSON object with where it comes from."""

import io
import json
import logging
import sys
from types import SimpleNamespace

import pytest

from flows.log_format import FORMAT_VARIABLE, JsonFormatter, JsonStream, as_json, format_libraries, json_line, log_context, stage_screen
from flows.terminal import say


@pytest.fixture
def for_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FORMAT_VARIABLE, "json")


def lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_people_get_plain_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FORMAT_VARIABLE, raising=False)
    say("[1/16] ingest")
    assert capsys.readouterr().err == "[1/16] ingest\n"
    assert not as_json()


@pytest.mark.usefixtures("for_machines")
def test_machines_get_where_a_line_comes_from(capsys: pytest.CaptureFixture[str]) -> None:
    with log_context(task="sentiment"), log_context(stage="tune", version=None):
        say('      quoted "text"\nof two lines, späť')
        with log_context(version=3):
            say("inner")
        say()
    say("outside")
    first, inner, outside = lines(capsys.readouterr().err)
    assert (first["message"], first["task"], first["stage"]) == ('quoted "text"\nof two lines, späť', "sentiment", "tune")
    assert first["time"] <= inner["time"]  # type: ignore[operator]
    assert first["promptmill"]
    assert "version" not in first
    assert inner["version"] == 3
    assert "task" not in outside


def test_a_line_says_which_prefect_run_it_is_of() -> None:
    from prefect.context import FlowRunContext, TaskRunContext

    flow_run = SimpleNamespace(id="the-flow-run")
    task_run = SimpleNamespace(id="the-task-run", flow_run_id="the-flow-run")
    with FlowRunContext.model_construct(flow_run=flow_run):
        line = json.loads(json_line("in the flow"))
        with TaskRunContext.model_construct(task_run=task_run):
            inner = json.loads(json_line("in a task"))
    assert line["run"] == inner["run"] == "the-flow-run"
    assert "task_run" not in line
    assert inner["task_run"] == "the-task-run"
    with TaskRunContext.model_construct(task_run=task_run):  # a task in a process of its own knows no flow context
        assert json.loads(json_line("elsewhere"))["run"] == "the-flow-run"
    assert "run" not in json.loads(json_line("outside"))


def test_a_stage_s_bytes_become_lines_however_they_are_cut() -> None:
    target = io.BytesIO()
    stream = JsonStream(target, "promptmill.stages.tune")
    for chunk in (b"step 1 lo", b"ss 0.5\rstep", b" 2\n\n", "größe ".encode()[:3], "größe ".encode()[3:], b"last"):
        assert stream.write(chunk) == len(chunk)
    assert [line["message"] for line in lines(target.getvalue().decode())] == ["step 1 loss 0.5", "step 2"]
    stream.close()
    stream.flush()
    shown = lines(target.getvalue().decode())
    assert shown[-1]["message"] == "größe last"
    assert {line["logger"] for line in shown} == {"promptmill.stages.tune"}
    assert not stream.isatty()


@pytest.mark.usefixtures("for_machines")
def test_the_stage_s_screen_is_json_only_where_it_was_asked_for(
    capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with stage_screen("score") as screen:
        screen.write(b"half a line")
    sys.stderr.flush()
    assert json.loads(capfdbinary.readouterr().err)["message"] == "half a line"
    monkeypatch.delenv(FORMAT_VARIABLE)
    with stage_screen("score") as screen:
        assert screen is sys.stderr.buffer


@pytest.mark.usefixtures("for_machines")
def test_libraries_lines_have_level_logger_and_traceback() -> None:
    logger = logging.getLogger("prefect")
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logger.addHandler(handler)
    try:
        format_libraries()
        assert isinstance(handler.formatter, JsonFormatter)
        try:
            _ = 1 / 0
        except ZeroDivisionError:
            logger.exception("it broke in %s", "two")
    finally:
        logger.removeHandler(handler)
    (line,) = lines(stream.getvalue())
    assert (line["level"], line["logger"]) == ("ERROR", "prefect")
    assert str(line["message"]).startswith("it broke in two\nTraceback")
