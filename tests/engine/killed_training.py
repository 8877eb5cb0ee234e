"""Run a training again and again while it is killed, until it ends; a program, so that no test's process is harmed.

Usage: python -m tests.engine.killed_training MODEL_FOLDER OUTPUT_FOLDER [ROUNDS]. For each optimiser and round it writes `<name>-<round>.json`: how each attempt
ended and the fingerprint of the last. Attempts are forks of this process, which saves them the imports.
"""

import itertools
import json
import os
import random
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from pipeline.engine.base_model import BaseModel, load_base_model
from pipeline.engine.checkpoint import Checkpoint
from pipeline.errors import TrainingInterrupted
from tests.engine.tiny_training import OPTIMISERS, fingerprint, run

KEY = "the params and inputs of this run"
# after: this many records (those of a resumed run's past count); the others: at this save of the attempt, before its file is
# opened, with part of it written, or before it is put in place.
KINDS = ("after", "after", "after", "after", "opening", "writing", "writing", "renaming")
TRIALS = {"trials": 3, "halving": True}


def kill_points(seed: int) -> list[tuple[str, int]]:
    """Eight points in random order; the `after` ones come in rising order, or a run would only be killed in its past."""
    randomness = random.Random(seed)
    kinds = randomness.sample(KINDS, len(KINDS))
    after = iter(sorted(randomness.randint(1, 76) for _ in range(KINDS.count("after"))))
    return [(kind, next(after) if kind == "after" else randomness.randint(1, 2)) for kind in kinds]


def kill() -> None:
    """End this process as nothing can prevent or notice."""
    os.kill(os.getpid(), signal.SIGKILL)


def kill_while_saving(kind: str, number: int) -> None:
    """Arrange that this process dies in its `number`-th save."""
    saves = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal saves
        if event not in ("open", "os.rename") or not str(arguments[0]).endswith(".tmp"):
            return
        saves += event == "open"
        if saves < number:
            return
        if kind == "writing" and event == "open":  # the kernel kills a process that writes more than this
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        if (kind, event) in (("opening", "open"), ("renaming", "os.rename")):
            kill()

    sys.addaudithook(watch)


def attempt(base: BaseModel, optimiser: str, folder: Path, kind: str, number: int) -> int:
    """One try in a process of its own; returns its exit status, negative for a signal."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    records: list[dict[str, Any]] = []
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))

    def on_record(record: dict[str, Any]) -> None:
        records.append(record)
        if len(records) == number and kind == "after":
            kill()
        if len(records) == number and kind == "terminated":
            os.kill(os.getpid(), signal.SIGTERM)

    if kind in KINDS and kind != "after":
        kill_while_saving(kind, number)
    checkpoint = Checkpoint(path=folder / f"{optimiser}.safetensors", key=KEY, every=3)
    try:
        result = run(base, optimiser=OPTIMISERS[optimiser], checkpoint=checkpoint, on_record=on_record, stop=lambda: bool(asked), **TRIALS)
    except TrainingInterrupted as stopped:
        os._exit(stopped.exit_code)
    (folder / f"{optimiser}.last").write_text(json.dumps(fingerprint(result, records)))
    checkpoint.remove()
    os._exit(0)


def main(model: Path, folder: Path, rounds: int = 1) -> None:
    torch.set_num_threads(1)
    base = load_base_model(source={"kind": "directory", "id": "tiny", "path": str(model)}, dtype="float32", device="cpu")
    for number, (seed, optimiser) in itertools.product(range(rounds), enumerate(OPTIMISERS)):
        points = [*kill_points(seed + len(OPTIMISERS) * number), ("terminated", 50), ("never", 0)]
        ends = [attempt(base, optimiser, folder, kind, number) for kind, number in points]
        last = json.loads((folder / f"{optimiser}.last").read_text())
        (folder / f"{optimiser}-{number}.json").write_text(json.dumps({"points": points, "ends": ends, "last": last}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))
