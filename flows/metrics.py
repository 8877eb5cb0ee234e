"""What a run tells Prometheus: figures in text files, which node_exporter's textfile collector shows.

Runs are short processes that come and go, several at once, so none of them listens on a port. `PROMPTMILL_METRICS_FOLDER` names the folder; without it nothing is
written. Each file holds what one stage, run or status knows, and is replaced as a whole: a run that is killed leaves the figures of the others alone.
"""

import os
import time
from collections import Counter
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flows.terminal import say
from pipeline.layout import TASK_NAME, Layout
from pipeline.records import read_json, read_jsonl

FOLDER_VARIABLE = "PROMPTMILL_METRICS_FOLDER"
MEGABYTE = 1e6  # as the training log counts them
TUNE = "tune"

Sample = tuple[str, Mapping[str, str], float]

METRICS: dict[str, tuple[str, tuple[str, ...]]] = {
    "promptmill_stage_seconds": ("Seconds that the stage took the last time it ran.", ("task", "stage")),
    "promptmill_tune_examples_per_second": ("Mean over the steps of the last tuning, all trials together.", ("task",)),
    "promptmill_tune_gpu_memory_bytes": ("Largest memory in use on all GPUs together during the last tuning.", ("task",)),
    "promptmill_run_succeeded": ("1 when the last run ended without an error (a gate that refuses is none), else 0.", ("task",)),
    "promptmill_run_finished_timestamp_seconds": ("When the last run ended, in seconds of the epoch.", ("task",)),
    "promptmill_gate_decision": ("1 for the gate's decision in the last run that reached it, 0 for the others.", ("task", "decision")),
    "promptmill_gate_checks": ("Checks of that gate by their verdict.", ("task", "verdict")),
    "promptmill_champion_version": ("The version that is champion.", ("task",)),
    "promptmill_waiting_for_approval": ("Versions that wait for a person.", ("task",)),
}
DECISIONS = ("promote", "ask", "refuse")


def metrics_folder() -> Path | None:
    """Where the files go; None when nobody asked for any."""
    named = os.environ.get(FOLDER_VARIABLE)
    return Path(named) if named else None


@contextmanager
def observed_run(root: Path, task: str) -> Generator[None]:
    """Write, when the block ends, whether it ended well and what the gate said; whatever becomes of that, the block's own outcome stands."""
    succeeded = False
    try:
        yield
        succeeded = True
    finally:
        if metrics_folder() is not None and TASK_NAME.fullmatch(task):
            write(f"{task}-run", run_samples(root, task, succeeded))


def stage_ran(root: Path, task: str, stage: str, seconds: float) -> None:
    """Write what a stage that really ran took; for tune also its speed and memory."""
    if metrics_folder() is None:
        return
    samples: list[Sample] = [("promptmill_stage_seconds", {"task": task, "stage": stage}, seconds)]
    write(f"{task}-{stage}", samples + (tune_samples(root, task) if stage == TUNE else []))


def write_status(task: str, champion: int | None, waiting: int) -> None:
    """Write who is champion and how many versions wait for a person."""
    if metrics_folder() is None:
        return
    samples: list[Sample] = [("promptmill_waiting_for_approval", {"task": task}, waiting)]
    write(f"{task}-status", samples + ([] if champion is None else [("promptmill_champion_version", {"task": task}, champion)]))


def run_samples(root: Path, task: str, succeeded: bool) -> list[Sample]:
    """How the run ended; the gate's decision and checks only when it ended well, since the record of an earlier run may lie there."""
    samples: list[Sample] = [
        ("promptmill_run_succeeded", {"task": task}, float(succeeded)),
        ("promptmill_run_finished_timestamp_seconds", {"task": task}, time.time()),
    ]
    path = Layout(root, task).path("gate")
    if not (succeeded and path.is_file()):
        return samples
    gate = read_json(path)
    samples += [("promptmill_gate_decision", {"task": task, "decision": one}, float(one == gate["decision"])) for one in DECISIONS]
    verdicts = Counter(str(check["verdict"]) for check in gate["checks"])
    return samples + [("promptmill_gate_checks", {"task": task, "verdict": verdict}, n) for verdict, n in sorted(verdicts.items())]


def tune_samples(root: Path, task: str) -> list[Sample]:
    """The mean speed and the largest GPU memory of a training log; no memory where no GPU was seen."""
    path = Layout(root, task).path("train_log")
    events = read_jsonl(path) if path.is_file() else []
    # Each trial logs the speed of the step that all trials share.
    speeds = {event["step"]: float(event["examples_per_second"]) for event in events if event["event"] == "step"}
    memory = [_gpu_megabytes(event) for event in events if event["event"] == "system"]
    samples: list[Sample] = []
    if speeds:
        samples.append(("promptmill_tune_examples_per_second", {"task": task}, sum(speeds.values()) / len(speeds)))
    if any(memory):
        samples.append(("promptmill_tune_gpu_memory_bytes", {"task": task}, max(memory) * MEGABYTE))
    return samples


def write(name: str, samples: list[Sample]) -> None:
    """Replace `<folder>/promptmill-<name>.prom` by these samples; a folder that cannot be written is said, and stops nothing."""
    from prometheus_client import CollectorRegistry, Gauge, write_to_textfile

    folder = metrics_folder()
    if folder is None:
        return
    registry = CollectorRegistry()
    gauges = {
        metric: Gauge(metric, METRICS[metric][0], METRICS[metric][1], registry=registry) for metric in dict.fromkeys(s[0] for s in samples)
    }
    for metric, labels, value in samples:
        gauges[metric].labels(**labels).set(value)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_to_textfile(str(folder / f"promptmill-{name}.prom"), registry)
    except OSError as error:
        say(f"The figures for Prometheus could not be written to {folder} ({error.strerror}). Correct {FOLDER_VARIABLE}; the run goes on.")


def _gpu_megabytes(event: Mapping[str, Any]) -> float:
    return sum(float(value) for key, value in event.items() if key.startswith("gpu_") and key.endswith("_memory_usage_megabytes"))
