"""Train on two gloo processes as a launcher would start them; a program, so that a test's own process joins no group.

Usage: python -m tests.engine.two_processes MODEL_FOLDER OUTPUT_FOLDER PORT. Each process writes `<rank>.json` and, for each case,
`<case>.<rank>.safetensors` with the trials' parameters. The processes are forks of this one, which saves them the imports.
"""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from pipeline.engine.base_model import BaseModel, load_base_model
from pipeline.engine.distributed import Processes, process_group
from pipeline.engine.hardware import choose_device
from pipeline.engine.training import TrainingResult
from pipeline.errors import TrainingError, TrainingInterrupted
from tests.engine.tiny_training import EXAMPLES, OPTIMISERS, fingerprint, run, tiny_learner

STEPS = 10
VALIDATION = EXAMPLES[:13]  # does not divide by two
# Batch sizes: halves, one process with more, one process with nothing. One learning rate: rounding grows with the size of the steps.
CASES: dict[str, dict[str, Any]] = {
    f"{name} {batch_size}": {"optimiser": replace(settings, learning_rate=0.01), "batch_size": batch_size}
    for name, settings in OPTIMISERS.items()
    for batch_size in (8, 7, 1)
}


def train_case(base: BaseModel, processes: Processes, case: dict[str, Any], **more: Any) -> TrainingResult:
    """Two trials on these processes, evaluated at steps 5 and 10."""
    learner = processes.learner(tiny_learner(base, 2))
    common = {"trials": 2, "validation": VALIDATION, "maximum_steps": STEPS, "evaluate_every": 5, "metric": "macro_f1"}
    return run(base, learner=learner, **common, **case, **more)


def parameters(result: TrainingResult) -> dict[str, torch.Tensor]:
    """Of all trials: the best state of the best one and the last states of the others."""
    return {f"{trial.index}.{name}": value.detach().clone() for trial in result.trials for name, value in trial.module.state_dict().items()}


def stopped_and_resumed(base: BaseModel, processes: Processes, folder: Path, case: dict[str, Any]) -> dict[str, Any]:
    """The signal reaches only the second process; both stop, and go on from the first one's file."""
    own = folder if processes.first else folder / "a file system that the first does not write"
    checkpoint = processes.checkpoint(path=own / "run.safetensors", key="k", every=4)
    steps: list[int] = []
    signalled = lambda: processes.rank == 1 and steps[-1] == 6  # noqa: E731
    note = lambda record: steps.append(record["step"])  # noqa: E731
    try:
        train_case(base, processes, case, checkpoint=checkpoint, stop=processes.stop(signalled), on_record=note)
    except TrainingInterrupted as stopped:
        message = str(stopped)
    records: list[dict[str, Any]] = []
    result = train_case(base, processes, case, checkpoint=checkpoint, on_record=records.append)
    wait_for_the_other(processes)  # the first may still be writing
    files = sorted(path.name for path in folder.iterdir())
    wait_for_the_other(processes)  # the second may still be looking
    checkpoint.remove()
    return {"message": message, "steps": steps, "resumed": fingerprint(result, records), "files": files}


def wait_for_the_other(processes: Processes) -> None:
    """Return when both processes have come here: a question to both ends when both have answered."""
    processes.stop(lambda: False)()


def disagreement(base: BaseModel, processes: Processes) -> str:
    """What is said when the processes' parameters are not the same at an evaluation."""
    learner = processes.learner(tiny_learner(base))
    if not processes.first:
        with torch.no_grad():
            next(learner.modules[0].parameters())[0, 0] += 1
    try:
        learner.outputs([0], VALIDATION)
    except TrainingError as error:
        return str(error)
    return ""


def starts(base: BaseModel, processes: Processes) -> float:
    """The first parameter after wrapping a learner that starts elsewhere in the second process."""
    learner = tiny_learner(base)
    with torch.no_grad():
        next(learner.modules[0].parameters()).fill_(processes.rank + 5)
    return float(next(processes.learner(learner).modules[0].parameters())[0, 0])


def work(base: BaseModel, folder: Path) -> None:
    """What each process does."""
    report: dict[str, Any] = {}
    with process_group(choose_device("auto")) as processes:
        for name, case in CASES.items():
            records: list[dict[str, Any]] = []
            result = train_case(base, processes, case, on_record=records.append)
            save_file(parameters(result), folder / f"{name}.{processes.rank}.safetensors")
            report[name] = fingerprint(result, records) | {"evaluations": [r for r in records if r["event"] == "evaluation"]}
            report[name]["losses"] = [record["loss"] for record in records if record["event"] == "step"]
        report["stopped"] = stopped_and_resumed(base, processes, folder / "checkpoint", CASES["adamw 7"])
        report["disagreement"] = disagreement(base, processes)
        report["starts"] = starts(base, processes)
        (folder / f"{processes.rank}.json").write_text(json.dumps(report))


def main(model: Path, folder: Path, port: str) -> None:
    torch.set_num_threads(1)
    base = load_base_model(source={"kind": "directory", "id": "tiny", "path": str(model)}, dtype="float32", device="cpu")
    (folder / "checkpoint").mkdir()
    children: list[int] = []
    for rank in range(2):
        child = os.fork()
        if not child:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            work(base, folder)
            return
        children.append(child)
    sys.exit(max(abs(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])) for child in children))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
