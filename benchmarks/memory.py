"""Peak memory of training above the weights: what a step adds to a process that has loaded its base model.

Each measurement has a process of its own, because memory that one arm has freed is not given back and would hide what the next one takes.
"""

import ctypes
import multiprocessing
import re
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.arms import ARMS, Task, start_values
from benchmarks.epochs import Batches
from benchmarks.models import TINY, random_base_model
from pipeline.engine.base_model import load_base_model
from pipeline.engine.batching import Example
from pipeline.engine.template import Verbalizers

STATUS = Path("/proc/self/status")


@dataclass(frozen=True, kw_only=True)
class MemoryCase:
    """What a fresh process needs to train `arm` on `batches`."""

    arm: str
    source: dict[str, Any]
    dtype: str
    head: tuple[int, ...]
    verbalizers: Verbalizers
    num_virtual_tokens: int
    batches: Batches


def peak_memory(case: MemoryCase) -> int:
    """Bytes of resident memory above the loaded weights, at the highest point of training on the case's batches (Linux)."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measure, case).result()


def peak_gpu_memory(case_task: Task, arm: str, batches: Batches, start: torch.Tensor) -> int:
    """Bytes that tensors take on the GPU above what is there before, at the highest point."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    ARMS[arm].train(case_task, batches, start)
    return torch.cuda.max_memory_allocated() - before


def _measure(case: MemoryCase) -> int:
    _load_code(case.arm)
    base = load_base_model(source=case.source, dtype=case.dtype, device="cpu")
    for parameter in base.model.parameters():
        parameter.sum()  # mapped weights become resident when they are first read
    task = Task(base, case.head, case.verbalizers)
    start = start_values(base, case.num_virtual_tokens)
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = _bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets VmHWM, which loading has raised (proc_pid_clear_refs(5))
    ARMS[case.arm].train(task, case.batches, start)
    return _bytes("VmHWM") - before


def _load_code(arm: str) -> None:
    """Run the arm on a tiny model, so that the code it imports is in memory before the measurement."""
    base = random_base_model(TINY, dtype=torch.float32, device=torch.device("cpu"))
    task = Task(base, (1, 2), Verbalizers(("a", "b"), ((3,), (4,))))
    examples: Sequence[Example] = [Example((5, 6), 0), Example((7,), 1)]
    ARMS[arm].train(task, [list(examples)] * 2, start_values(base, 2))


def _bytes(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB$", STATUS.read_text(encoding="ascii"), re.MULTILINE)
    if found is None:
        raise SystemExit(f"{STATUS} has no line {name}; peak memory is measured on Linux only. Run with --no-memory.")
    return int(found.group(1)) * 1024
