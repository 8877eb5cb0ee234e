"""A learner turns batches into gradients for a set of trials. The training loop knows nothing else about the model.

`SharedPrefixLearner` is the fast one, for decoder-only base models.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal, Protocol, TypeVar

import torch

from pipeline.engine.base_model import BaseModel
from pipeline.engine.batching import Example
from pipeline.engine.methods import TunedModule
from pipeline.engine.objectives import Objective, Result
from pipeline.engine.prefix_cache import Prefix
from pipeline.engine.shared_prefix import encode_prefixes
from pipeline.engine.soft_prompt import SoftPrompt

Packing = Literal["auto", "on", "off"]
# Tokens that one pass of a training step holds on a CPU. More of them make it no faster there and take memory in proportion: 16 tweets
# in passes of 8 take the time of one pass, 16 texts of 200 tokens in passes of 4 take 0.7 of it (SmolLM2-135M, 2 cores).
CPU_TOKENS_AT_ONCE = 512
Outcome = TypeVar("Outcome")


class Learner(Protocol):
    """N trials over one frozen base model; a trial is known by its index."""

    @property
    def modules(self) -> Sequence[torch.nn.Module]:
        """What each trial trains: its parameters and, through state_dict(), its checkpoint."""
        ...

    def backward(self, batches: Mapping[int, Sequence[Example]], weight: float) -> dict[int, float]:
        """Add to each trial's gradients those of `weight` times the sum of its examples' losses; returns these weighted losses."""
        ...

    def outputs(self, trials: Sequence[int], examples: Sequence[Example]) -> torch.Tensor:
        """What `result` needs to know of each example for each of these trials: [E, N, K], float32 on the CPU (see Objective.outputs)."""
        ...

    def result(self, outputs: torch.Tensor, examples: Sequence[Example]) -> Result:
        """The result of one trial, from its outputs [E, K] for all examples of a set."""
        ...


class SharedPrefixLearner:
    """Trials in one batch over the shared-prefix pass.

    The base model is frozen, so the trials' prefixes are rows of one batch and each example is told which row it stands behind:
    the losses are summed and the gradients are independent.

    Memory never changes the optimiser's batch. On a GPU all rows of a step are tried at once (or `rows_at_once`), and each time it runs
    out of memory that number is halved, for good: the step's gradients are then the sum over several passes, the same up to rounding.
    So the largest part of a batch that fits is found by trying, once in a run. Evaluation halves `scoring_batch_size` in the same way.
    A CPU, which more rows make no faster, gets passes of about CPU_TOKENS_AT_ONCE tokens.

    `packing` says how the examples of a pass are laid out: `on` end to end in one row (see packing.py), `off` padded, `auto` packed only
    with the FlexAttention kernel, which skips what the mask hides.
    """

    def __init__(
        self,
        *,
        base: BaseModel,
        head: tuple[int, ...],
        objective: Objective,
        modules: Sequence[TunedModule],
        rows_at_once: int | None = None,
        scoring_batch_size: int = 64,
        packing: Packing = "auto",
    ) -> None:
        self.base, self.head, self.objective = base, head, objective
        self.modules: Sequence[TunedModule] = modules
        self.rows_at_once = rows_at_once
        self.scoring_batch_size = scoring_batch_size
        self.packing: Packing = packing

    def backward(self, batches: Mapping[int, Sequence[Example]], weight: float) -> dict[int, float]:
        """See Learner. Rows run in chunks are sorted by length, all trials together, so that a chunk has little padding."""
        trials = sorted(batches)
        prefix = self._encode([self.modules[trial]() for trial in trials])
        rows = [(slot, example) for slot, trial in enumerate(trials) for example in batches[trial]]
        at_once = min(self.rows_at_once or self._rows_for(rows), len(rows))
        (leaves, losses), fitted = halving(lambda count: self._accumulate(prefix, rows, weight, count), at_once)
        if prefix.packed and len(trials) > 1 and not all(map(math.isfinite, losses)):
            # In one packed row a mask does not keep NaN away from the other trials: their attention is 0 x NaN.
            (leaves, losses), fitted = halving(lambda count: self._accumulate(replace(prefix, packed=False), rows, weight, count), at_once)
        if fitted < at_once:
            self.rows_at_once = fitted
        tensors = [(out, leaf.grad) for out, leaf in zip(prefix.tensors(), leaves.tensors(), strict=True) if leaf.grad is not None]
        torch.autograd.backward([out for out, _ in tensors], [grad for _, grad in tensors])
        return dict(zip(trials, losses, strict=True))

    def outputs(self, trials: Sequence[int], examples: Sequence[Example]) -> torch.Tensor:
        """See Learner. Each prefix is computed once and serves the whole set."""
        prefix = self.prefix(trials)
        outputs, self.scoring_batch_size = halving(
            lambda count: self.objective.outputs(self.base, prefix, examples, count), self.scoring_batch_size
        )
        return outputs

    def result(self, outputs: torch.Tensor, examples: Sequence[Example]) -> Result:
        """See Learner."""
        return self.objective.result(outputs, examples)

    def prefix(self, trials: Sequence[int]) -> Prefix:
        """The trials' prefixes as they stand, taking no gradient."""
        with torch.no_grad():
            return self._encode([self.soft_prompt(trial) for trial in trials])

    def soft_prompt(self, trial: int) -> SoftPrompt:
        """A copy of what this trial has learnt."""
        return self.modules[trial]().detached()

    def _encode(self, soft_prompts: list[SoftPrompt]) -> Prefix:
        prefix = encode_prefixes(self.base, soft_prompts, self.head)
        return prefix if self.packing == "auto" else replace(prefix, packed=self.packing == "on")

    def _rows_for(self, rows: Sequence[tuple[int, Example]]) -> int:
        """How many rows a pass holds where nothing else says so: parts of equal size, so that none is too small to be quick."""
        if self.base.device.type != "cpu" or self.packing == "on":
            return len(rows)
        passes = math.ceil(sum(len(example.token_ids) for _, example in rows) / CPU_TOKENS_AT_ONCE)
        return math.ceil(len(rows) / max(1, passes))

    def _accumulate(self, prefix: Prefix, rows: list[tuple[int, Example]], weight: float, at_once: int) -> tuple[Prefix, list[float]]:
        """Gradients of all rows at the prefix's keys and values, and each prefix's loss; the prefix's own graph stays untouched."""
        leaves = prefix.detached()
        totals = torch.zeros(len(prefix.lengths), device=self.base.device)
        by_length = at_once < len(rows) and not prefix.packed
        ordered = sorted(rows, key=lambda row: len(row[1].token_ids)) if by_length else rows
        for start in range(0, len(ordered), at_once):
            chunk = ordered[start : start + at_once]
            slots = [slot for slot, _ in chunk]
            losses = self.objective.losses(self.base, leaves, slots, [example for _, example in chunk]) * weight
            losses.sum().backward()
            totals.index_add_(0, torch.tensor(slots, device=self.base.device), losses.detach())
        return leaves, totals.tolist()


def halving(run: Callable[[int], Outcome], at_once: int) -> tuple[Outcome, int]:
    """`run(at_once)`, with half as many rows after each CUDA out-of-memory error; returns how many fitted as well.

    Raises torch.cuda.OutOfMemoryError when a single row does not fit.
    """
    while True:
        try:
            return run(at_once), at_once
        except torch.cuda.OutOfMemoryError:
            if at_once == 1:
                raise
        # Behind the handler: while it lasts, the error's traceback holds the tensors of the pass that failed.
        at_once //= 2
        torch.cuda.empty_cache()
