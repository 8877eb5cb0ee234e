"""`promptmill status`: what is known, what is not, and how it is shown."""

import json
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path

import pytest

from flows import metrics, status
from flows.status import HEADER, Run, Runs, TaskStatus, ago, collect, in_html, in_markdown, in_terminal, rows
from pipeline.errors import RegistryError
from pipeline.layout import Layout
from pipeline.records import write_json

NOW = datetime(2026, 11, 28, 12, 0, tzinfo=UTC)
FULL = TaskStatus(
    "sentiment", champion=3, since=NOW - timedelta(days=12, hours=3), newest=4, decision="ask", waiting=(4,),
    last_run=Run("Completed", NOW - timedelta(hours=5)), next_run=NOW + timedelta(hours=12), drift="PASS",
)  # fmt: skip
UNASKED = TaskStatus("topics", registry_known=False, runs_known=False, notes=("topics: MLflow does not answer", "Prefect was not asked"))


def version(number: int, **more: object) -> dict[str, object]:
    base = {"version": number, "aliases": [], "gate_decision": "promote", "promoted_at": None, "approval_request": None, "approval": None}
    return {**base, **more}


def test_a_task_s_row_says_all_of_it() -> None:
    (row,) = rows([FULL], NOW)
    assert row == ("sentiment", "version 3", "12 d", "Completed, 5 h ago", "2026-11-29 00:00 UTC", "ask (version 4)", "PASS", "version 4")


def test_what_was_not_answered_never_looks_like_nothing() -> None:
    (unasked,), (empty,) = rows([UNASKED], NOW), rows([TaskStatus("new")], NOW)
    assert unasked == ("topics", "?", "?", "?", "?", "?", "-", "?")
    assert empty == ("new", "-", "-", "-", "-", "-", "-", "-")
    shown = in_terminal([FULL, UNASKED, UNASKED], NOW)
    assert shown.count("note: topics: MLflow does not answer") == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(59, "under a minute"), (60, "1 min"), (3_599, "59 min"), (7_200, "2 h"), (172_801, "2 d"), (-5, "under a minute")],
)
def test_lengths_of_time(seconds: int, text: str) -> None:
    assert ago(NOW - timedelta(seconds=seconds), NOW) == text


def test_the_registry_is_read_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits = {"approval_request": {"champion": 2}}
    versions = [
        version(4, gate_decision="ask", **waits),
        version(3, gate_decision="refuse"),
        version(
            2, aliases=["champion"], promoted_at="2026-11-20T12:00:00+00:00", approval_request={"champion": 1}, approval={"approved": True}
        ),
    ]
    monkeypatch.setattr("pipeline.registry.registry.list_versions", lambda *, root, task: versions)
    path = Layout(tmp_path, "sentiment").path("drift")
    path.parent.mkdir(parents=True)
    write_json(path, {"verdict": "FAIL"})
    run = Run("Failed", NOW)
    (found,) = collect(tmp_path, ["sentiment"], Runs({"sentiment": run, "other": run}, {"sentiment": NOW}))
    assert found == TaskStatus(
        "sentiment", champion=2, since=datetime(2026, 11, 20, 12, tzinfo=UTC), newest=4, decision="ask", waiting=(4,), last_run=run, next_run=NOW, drift="FAIL",
    )  # fmt: skip


def test_a_registry_that_does_not_answer_is_a_note_and_no_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*, root: Path, task: str) -> None:  # noqa: ARG001
        raise RegistryError("The MLflow server http://x does not answer.")

    monkeypatch.setattr("pipeline.registry.registry.list_versions", broken)
    monkeypatch.setenv(metrics.FOLDER_VARIABLE, str(tmp_path / "metrics"))
    (found,) = collect(tmp_path, ["sentiment"], Runs({}, {}, "Prefect was not asked"))
    assert not found.registry_known
    assert found.notes == ("Prefect was not asked", "sentiment: The MLflow server http://x does not answer.")
    assert not (tmp_path / "metrics").exists()


def test_nothing_registered_yet_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (found,) = collect(tmp_path, ["sentiment"], Runs({}, {}))
    assert found == TaskStatus("sentiment")


def test_a_drift_record_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    path = Layout(tmp_path, "sentiment").path("drift")
    path.parent.mkdir(parents=True)
    path.write_text("{", encoding="utf-8")
    verdict, note = status._drift(tmp_path, "sentiment")
    assert verdict == "?"
    assert note is not None
    assert str(path) in note


def test_without_a_server_nobody_is_asked_and_that_is_said() -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:1/api"}):
        unreachable = status.read_runs()
    assert unreachable.note is not None
    assert unreachable.note.startswith("Prefect at http://127.0.0.1:1/api does not answer (")
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        unasked = status.read_runs()
    assert unasked.note is not None
    assert "PREFECT_API_URL names no server" in unasked.note


class Cells(HTMLParser):
    """The text of every table cell, and the classes."""

    def __init__(self) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.classes: list[str | None] = []
        self._inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("td", "th"):
            self.cells.append("")
            self.classes.append(dict(attrs).get("class"))
            self._inside = True

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.cells[-1] += data


def test_the_page_shows_the_same_cells_and_marks_what_matters() -> None:
    hostile = TaskStatus("x", last_run=Run("<script>alert(1)</script>", None), notes=("<b>note</b>",))
    page = in_html([FULL, UNASKED, hostile], NOW)
    parsed = Cells()
    parsed.feed(page)
    expected = rows([FULL, UNASKED, hostile], NOW)
    assert parsed.cells == [*HEADER, *(cell for row in expected for cell in row)]
    shown = dict(zip(HEADER, parsed.classes[len(HEADER) : 2 * len(HEADER)], strict=True))
    assert (shown["verdict"], shown["waiting"], shown["drift"], shown["last run"], shown["champion"]) == (
        "look",
        "look",
        "good",
        "good",
        None,
    )
    assert "<script>" not in page
    assert "<b>note" not in page
    assert "http" not in page, "it needs no other file"


def test_prefect_s_page_gets_a_table_that_no_cell_breaks() -> None:
    lines = in_markdown([TaskStatus("x", last_run=Run("a|b", None))], NOW).splitlines()
    assert lines[1] == "| " + " | ".join(["---"] * len(HEADER)) + " |"
    assert lines[2].replace("\\|", "").count("|") == len(HEADER) + 1
    assert "As of 2026-11-28 12:00 UTC." in lines[-1]


def test_the_command_prints_writes_the_page_and_speaks_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], repo_root: Path
) -> None:
    from flows.cli import main

    for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("flows.status_command.apply_prefect_defaults", lambda root: None)
    (tmp_path / "params.yaml").write_text((repo_root / "params.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert main(["status"]) == 0
    printed = capsys.readouterr()
    assert printed.out.split()[: len(HEADER)][0] == "task"
    assert [line.split()[:2] for line in printed.out.splitlines() if line.startswith("tweet_sentiment")] == [["tweet_sentiment", "-"]]
    assert "tweet_sentiment" in (tmp_path / "reports" / "status.html").read_text(encoding="utf-8")
    assert main(["status", "tweet_sentiment", "--json"]) == 0
    (only,) = json.loads(capsys.readouterr().out)
    assert (only["task"], only["champion"]) == ("tweet_sentiment", None)
    assert main(["status", "nobody"]) == 2
    assert "nobody" in capsys.readouterr().err
