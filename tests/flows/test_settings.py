from pathlib import Path

import pytest

from flows.settings import apply_prefect_defaults, log_file, missing_defaults, prefect_defaults, reach_loopback_directly
from flows.summary import artifact_key, contract_markdown, gate_table, verdict_markdown
from flows.terminal import duration, number
from pipeline.errors import WorkspaceError


def test_only_what_the_user_left_open_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in prefect_defaults(tmp_path):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "mine"))
    open_ones = missing_defaults(tmp_path, {"PREFECT_HOME": "x"})
    assert set(prefect_defaults(tmp_path)) - set(open_ones) == {"PREFECT_HOME"}
    with monkeypatch.context() as inner:
        for name, value in open_ones.items():
            inner.setenv(name, value)  # so that they are taken away again
        apply_prefect_defaults(tmp_path)
    assert (tmp_path / "mine").is_dir()
    assert not (tmp_path / ".promptmill" / "prefect").exists()


def test_a_proxy_is_not_asked_for_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "example.org,localhost")
    monkeypatch.setenv("no_proxy", "")
    reach_loopback_directly()
    import os

    assert (os.environ["NO_PROXY"], os.environ["no_proxy"]) == ("example.org,localhost,127.0.0.1", "127.0.0.1,localhost")


def test_a_log_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    assert log_file(tmp_path, "a.task", "tune") == tmp_path / ".promptmill" / "logs" / "a.task" / "tune.log"
    (tmp_path / ".promptmill" / "logs" / "b").write_text("a file")
    with pytest.raises(WorkspaceError, match="logs/b cannot be made"):
        log_file(tmp_path, "b", "tune")


def test_a_check_without_figures_is_shown_with_dashes() -> None:
    missing = {"name": "macro_f1", "verdict": "MISSING", "value": None, "low": None, "high": None, "n": None, "limit": 0.45}
    assert gate_table({"checks": [missing]}).splitlines() == [
        "check     verdict  value  interval  rows  limit",
        "macro_f1  MISSING  -      -         -     0.45",
    ]


def test_the_verdict_gives_reasons_and_metrics() -> None:
    nothing = {"value": None, "low": None, "high": None, "n": 0, "why": "none"}
    metrics = {"n": 10, "variants": {"tuned": {"accuracy": {"value": 0.61234, "low": 0.5, "high": 0.7, "n": 10}, "macro_f1": nothing}}}
    text = verdict_markdown("a_task", 3, {"decision": "refuse", "reasons": ["accuracy: FAIL: too low."]}, metrics)
    assert text.startswith("# a_task version 3 was refused by the gate\n\n- accuracy: FAIL: too low.\n")
    assert "# a_task version 3 waits for a person" in verdict_markdown("a_task", 3, {"decision": "ask", "reasons": []}, metrics)
    assert "| tuned | 0.6123 (0.5 to 0.7) | - |" in text
    assert "`reports/a_task/card.html`" in text


def test_the_contract_gives_failed_checks_and_where_data_docs_are() -> None:
    check = {"severity": "warning", "column": "text", "expected": "a|b", "observed": "3 of 9", "fix": "Mend it.", "success": False}
    report = {"rows": 9, "accepted": 6, "expectations": [check, {**check, "success": True}], "data_docs": "data_docs/index.html"}
    text = contract_markdown("a_task", report)
    assert "6 of 9 rows accepted, 1 of 2 checks failed." in text
    assert text.count("\n| warning |") == 1
    assert "| warning | text | a\\|b | 3 of 9 | Mend it. |" in text
    assert "`reports/a_task/data_docs/index.html`" in text


@pytest.mark.parametrize(
    ("value", "text"), [(None, "-"), (1.0, "1"), (0.5, "0.5"), (0.123456, "0.1235"), (100.0, "100"), (7, "7"), ("x", "x")]
)
def test_figures_for_people(value: object, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.84, "0.8 s"), (42.4, "42 s"), (60, "1 min 0 s"), (372, "6 min 12 s")])
def test_times_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_artifact_keys_hold_what_prefect_allows() -> None:
    assert artifact_key("gate", "tweet_sentiment.v2") == "gate-tweet-sentiment-v2"
