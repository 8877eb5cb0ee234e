"""Figures for Prometheus: read back by Prometheus' own parser, from records that are laid down by hand."""

from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from flows import metrics
from pipeline.layout import Layout
from pipeline.records import write_json, write_jsonl

TASK = "sentiment"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = tmp_path / "metrics"
    monkeypatch.setenv(metrics.FOLDER_VARIABLE, str(made))
    return made


def read(folder: Path) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample of every file, by name and labels."""
    found: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for file in sorted(folder.glob("*.prom")):
        for family in text_string_to_metric_families(file.read_text(encoding="utf-8")):
            assert (family.type, family.documentation) == ("gauge", metrics.METRICS[family.name][0])
            for sample in family.samples:
                found[sample.name, tuple(sorted(sample.labels.items()))] = sample.value
    return found


def labels(**more: str) -> tuple[tuple[str, str], ...]:
    return tuple(sorted({"task": TASK, **more}.items()))


def write_gate(root: Path, decision: str, verdicts: list[str]) -> None:
    path = Layout(root, TASK).path("gate")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"decision": decision, "checks": [{"verdict": verdict} for verdict in verdicts]})


def test_a_run_that_ended_well_tells_what_the_gate_said(tmp_path: Path, folder: Path) -> None:
    write_gate(tmp_path, "refuse", ["PASS", "FAIL", "PASS"])
    with metrics.observed_run(tmp_path, TASK):
        pass
    found = read(folder)
    assert found["promptmill_run_succeeded", labels()] == 1
    assert found["promptmill_run_finished_timestamp_seconds", labels()] > 1.7e9
    assert {key[1]: value for key, value in found.items() if key[0] == "promptmill_gate_decision"} == {
        labels(decision="promote"): 0,
        labels(decision="ask"): 0,
        labels(decision="refuse"): 1,
    }
    assert found["promptmill_gate_checks", labels(verdict="PASS")] == 2
    assert found["promptmill_gate_checks", labels(verdict="FAIL")] == 1


def test_a_run_that_failed_does_not_repeat_an_earlier_gate(tmp_path: Path, folder: Path) -> None:
    write_gate(tmp_path, "promote", ["PASS"])
    with pytest.raises(ZeroDivisionError), metrics.observed_run(tmp_path, TASK):
        _ = 1 / 0
    found = read(folder)
    assert found["promptmill_run_succeeded", labels()] == 0
    assert {key[0] for key in found} == {"promptmill_run_succeeded", "promptmill_run_finished_timestamp_seconds"}


def test_tuning_tells_its_mean_speed_and_the_memory_of_all_gpus(tmp_path: Path, folder: Path) -> None:
    log = Layout(tmp_path, TASK).path("train_log")
    log.parent.mkdir(parents=True)
    step = {"event": "step", "loss": 1.0}
    events = [
        {**step, "trial": 0, "step": 1, "examples_per_second": 10.0},
        {**step, "trial": 1, "step": 1, "examples_per_second": 10.0},  # the trials of a step share it
        {**step, "trial": 0, "step": 2, "examples_per_second": 30.0},
        {"event": "system", "step": 1, "gpu_0_memory_usage_megabytes": 1_000.0, "gpu_1_memory_usage_megabytes": 500.0},
        {"event": "system", "step": 2, "gpu_0_memory_usage_megabytes": 1_200.0, "gpu_0_memory_usage_percentage": 90.0},
    ]
    write_jsonl(log, events)
    metrics.stage_ran(tmp_path, TASK, "tune", 12.5)
    assert read(folder) == {
        ("promptmill_stage_seconds", labels(stage="tune")): 12.5,
        ("promptmill_tune_examples_per_second", labels()): 20.0,
        ("promptmill_tune_gpu_memory_bytes", labels()): 1.5e9,
    }
    write_jsonl(log, events[:3])
    metrics.stage_ran(tmp_path, TASK, "tune", 12.5)
    assert ("promptmill_tune_gpu_memory_bytes", labels()) not in read(folder), "a machine without a GPU has no such figure"


def test_stages_and_tasks_keep_out_of_each_other_s_files(tmp_path: Path, folder: Path) -> None:
    metrics.stage_ran(tmp_path, TASK, "score", 1.0)
    metrics.stage_ran(tmp_path, TASK, "split", 2.0)
    metrics.write_status(TASK, 4, 1)
    metrics.write_status("other", None, 0)
    found = read(folder)
    assert found["promptmill_stage_seconds", labels(stage="score")] == 1.0
    assert found["promptmill_stage_seconds", labels(stage="split")] == 2.0
    assert found["promptmill_champion_version", labels()] == 4
    assert found["promptmill_waiting_for_approval", labels()] == 1
    assert ("promptmill_champion_version", (("task", "other"),)) not in found
    assert [path.name for path in folder.iterdir() if path.suffix != ".prom"] == [], "no half-written file stays"


def test_nothing_is_written_without_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(metrics.FOLDER_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    metrics.stage_ran(tmp_path, TASK, "score", 1.0)
    metrics.write_status(TASK, 4, 1)
    with metrics.observed_run(tmp_path, TASK):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_stops_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(metrics.FOLDER_VARIABLE, str(tmp_path / "file" / "metrics"))
    with metrics.observed_run(tmp_path, TASK):
        pass
    assert f"Correct {metrics.FOLDER_VARIABLE}; the run goes on" in capsys.readouterr().err
