"""Data parallel training: several processes, each with its own copy of the base model, share out every batch.

Started by `torchrun` (`launch`) or `accelerate launch`, which tell each process its rank. The global batch is that of one process, and so is
what is learnt: gradients are sums over examples that are already weighted by 1 / global batch, so they are added up, P x H numbers
per trial and step. Every process takes the same step, so all hold the same parameters; only the first writes.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed

from pipeline.engine.batching import Example
from pipeline.engine.checkpoint import Checkpoint, Snapshot
from pipeline.engine.learners import Learner
from pipeline.engine.objectives import Result
from pipeline.errors import TrainingError

LAUNCH_POLL_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True)
class Processes:
    """The processes of one training run, as one of them sees them. With one process everything is as without this module."""

    rank: int
    count: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the process that writes records and outputs."""
        return self.rank == 0

    def learner(self, learner: Learner) -> Learner:
        """`learner` over all processes."""
        return learner if self.count == 1 else DistributedLearner(learner)

    def checkpoint(self, *, path: Path, key: str, every: int, say: Callable[[str], None] = lambda message: None) -> Checkpoint:
        """A checkpoint that the first process writes, and reads for all: the others need not see its file system."""
        if self.count == 1:
            return Checkpoint(path=path, key=key, every=every, say=say)
        return SharedCheckpoint(path=path, key=key, every=every, writes=self.first, say=say)

    def stop(self, stop: Callable[[], bool]) -> Callable[[], bool]:
        """`stop` for all processes: true when it is true in any of them, since a signal may reach only one."""

        def anywhere() -> bool:
            flag = torch.tensor(float(stop()), device=self.device)
            distributed.all_reduce(flag, distributed.ReduceOp.MAX)
            return bool(flag)

        return stop if self.count == 1 else anywhere


@contextmanager
def process_group(device: torch.device, *, timeout: timedelta = timedelta(minutes=30)) -> Generator[Processes]:
    """Join the other processes (nccl on a GPU, gloo on a CPU), and leave them at the end.

    Without a launcher's variables this is the only process. Waiting longer than `timeout` for another process is an error.
    """
    count = process_count()
    if count == 1:
        yield Processes(rank=0, count=1, device=device)
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timeout)
    try:
        yield Processes(rank=distributed.get_rank(), count=count, device=device)
    finally:
        distributed.destroy_process_group()


def launched() -> bool:
    """Whether a launcher started this process, alone or as one of several."""
    return "WORLD_SIZE" in os.environ


def process_count() -> int:
    """How many processes the launcher started, 1 without one. Their sums round otherwise than those of one process."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def launch(count: int, module: Sequence[str], *, environment: Mapping[str, str], stop: Callable[[], bool]) -> int:
    """Run `python -m MODULE ARGUMENTS` in `count` processes of this machine under torchrun, and wait; returns torchrun's exit code.

    When `stop` becomes true torchrun is asked to end, and asks its processes.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), "-m", *module]
    with subprocess.Popen(command, env={**os.environ, **environment}) as process:
        asked = False
        while process.poll() is None:
            if stop() and not asked:
                process.send_signal(signal.SIGTERM)
                asked = True
            time.sleep(LAUNCH_POLL_SECONDS)
        return process.returncode


class SharedCheckpoint(Checkpoint):
    """The checkpoint of all processes."""

    def load(self) -> Snapshot | None:
        """See Checkpoint; what the first process finds, all get. Where it raises, the launcher ends the others."""
        found = [super().load() if self.writes else None]
        distributed.broadcast_object_list(found, src=0)
        return found[0]


class DistributedLearner:
    """A learner over all processes of the group, made of this process's own.

    At the start all take the parameters of the first process. Evaluation shares out the examples and puts their outputs together in
    every process, so metrics are computed on all rows and all processes come to the same decisions.
    """

    def __init__(self, learner: Learner) -> None:
        self.learner = learner
        self.rank, self.processes = distributed.get_rank(), distributed.get_world_size()
        for module in learner.modules:
            for value in module.state_dict().values():
                distributed.broadcast(value, src=0)

    @property
    def modules(self) -> Sequence[torch.nn.Module]:
        """See Learner."""
        return self.learner.modules

    def backward(self, batches: Mapping[int, Sequence[Example]], weight: float) -> dict[int, float]:
        """See Learner. A process that a small batch leaves without examples adds zeros."""
        parts = {trial: batch[self.rank :: self.processes] for trial, batch in batches.items()}
        parts = {trial: part for trial, part in parts.items() if part}
        losses = self.learner.backward(parts, weight) if parts else {}
        return self._add_up({trial: losses.get(trial, 0.0) for trial in sorted(batches)})

    def outputs(self, trials: Sequence[int], examples: Sequence[Example]) -> torch.Tensor:
        """See Learner. Parts are filled up with the first example, so that all are equally long and none is empty."""
        self._compare_parameters(trials)
        part = list(examples[self.rank :: self.processes])
        part += [examples[0]] * (-(-len(examples) // self.processes) - len(part))
        own = self.learner.outputs(trials, part).to(self._device)
        parts = [torch.empty_like(own) for _ in range(self.processes)]
        distributed.all_gather(parts, own.contiguous())
        return torch.stack(parts, dim=1).flatten(0, 1)[: len(examples)].cpu()

    def result(self, outputs: torch.Tensor, examples: Sequence[Example]) -> Result:
        """See Learner."""
        return self.learner.result(outputs, examples)

    @property
    def _device(self) -> torch.device:
        return next(self.modules[0].parameters()).device

    def _add_up(self, losses: dict[int, float]) -> dict[int, float]:
        """Add the trials' gradients and losses over the processes, all in one message."""
        parameters = [parameter for trial in losses for parameter in self.modules[trial].parameters() if parameter.requires_grad]
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        own = torch.tensor(list(losses.values()), device=self._device)
        message = torch.cat([own, *(gradient.float().flatten() for gradient in gradients)])
        distributed.all_reduce(message)
        total, *summed = message.split([len(own), *(gradient.numel() for gradient in gradients)])
        for gradient, sum_ in zip(gradients, summed, strict=True):
            gradient.copy_(sum_.view_as(gradient))
        return dict(zip(losses, total.tolist(), strict=True))

    def _compare_parameters(self, trials: Sequence[int]) -> None:
        """Raise TrainingError when the processes no longer hold the same parameters: their gradients would mean nothing."""
        own = torch.stack([value.double().sum() for trial in trials for value in self.modules[trial].state_dict().values()])
        found = [torch.empty_like(own) for _ in range(self.processes)]
        distributed.all_gather(found, own)
        different = [rank for rank, sums in enumerate(found) if not torch.equal(sums, found[0])]
        if different:
            raise TrainingError(
                f"The processes {different} hold other parameters than process 0, so they train different prompts. "
                "Give all processes the same params, inputs, code and hardware, and start again."
            )
