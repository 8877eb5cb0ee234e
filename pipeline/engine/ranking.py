"""Ranking the labels of many examples: over the shared-prefix pass, or through PEFT's own forward where that is needed.

Both give log-probabilities with one meaning, so whoever scores does not need to know which of them runs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch
from safetensors.torch import load_file

from pipeline.engine.base_model import BaseModel
from pipeline.engine.batching import Example
from pipeline.engine.learners import halving
from pipeline.engine.objectives import Classification
from pipeline.engine.peft_adapter import PeftModule, adapter_sha256, load_peft_module, plain_module
from pipeline.engine.peft_learner import PeftLearner
from pipeline.engine.prefix_cache import Prefix
from pipeline.engine.scoring import score_examples
from pipeline.engine.shared_prefix import disagreement, encode_prefixes
from pipeline.engine.soft_prompt import TENSOR_NAME, WEIGHTS_FILE, SoftPrompt, load_soft_prompt, tensor_sha256

Pass = Literal["shared prefix", "PEFT"]


class Ranker(Protocol):
    """One tuned or hard prompt on its base model."""

    def rank(self, examples: Sequence[Example], *, batch_size: int, advance: Callable[[int], None] = lambda rows: None) -> torch.Tensor:
        """Log-probabilities of the labels, [E, C] float32 on the CPU in the order of `examples`; `advance` is told of finished rows.

        When a batch does not fit into GPU memory, everything is ranked again with half as many rows at once. The longest rows come
        first, so this shows before any row is finished.
        """
        ...


@dataclass(frozen=True)
class SharedPrefixRanker:
    """`prefix` is what prompt and base model compute before any example is seen, once for all of them."""

    base: BaseModel
    prefix: Prefix
    objective: Classification

    def rank(self, examples: Sequence[Example], *, batch_size: int, advance: Callable[[int], None] = lambda rows: None) -> torch.Tensor:
        """See Ranker."""

        def at_once(count: int) -> torch.Tensor:
            return score_examples(
                base=self.base,
                prefix=self.prefix,
                examples=examples,
                verbalizers=self.objective.verbalizers,
                batch_size=count,
                length_normalisation=self.objective.length_normalisation,
                advance=advance,
            )

        return halving(at_once, batch_size)[0]


@dataclass(frozen=True)
class PeftRanker:
    """An adapter, or the plain base model, behind PEFT's forward."""

    base: BaseModel
    module: PeftModule
    head: tuple[int, ...]
    objective: Classification

    def rank(self, examples: Sequence[Example], *, batch_size: int, advance: Callable[[int], None] = lambda rows: None) -> torch.Tensor:
        """See Ranker."""

        def at_once(count: int) -> torch.Tensor:
            learner = PeftLearner(base=self.base, head=self.head, objective=self.objective, modules=[self.module], scoring_batch_size=count)
            return learner.log_probabilities(0, examples, advance=advance)

        return halving(at_once, batch_size)[0]


def pass_for(base: BaseModel) -> Pass:
    """The pass that ranks on this base model without an adapter in its layers."""
    return "shared prefix" if base.architecture == "decoder" and disagreement(base) is None else "PEFT"


def hard_prompt_ranker(base: BaseModel, head: tuple[int, ...], objective: Classification, through: Pass) -> Ranker:
    """A hard prompt template whose shared part is `head`, without any soft prompt."""
    if through == "PEFT":
        return PeftRanker(base, plain_module(base), head, objective)
    return _shared(base, None, head, objective)


def tuned_ranker(folder: Path, base: BaseModel, head: tuple[int, ...], objective: Classification, through: Pass) -> Ranker:
    """The tuned prompt in `folder`; raises BundleError when its files are no such prompt or do not fit the base model."""
    if through == "PEFT":
        return PeftRanker(base, load_peft_module(folder, base), head, objective)
    return _shared(base, load_soft_prompt(folder, base), head, objective)


def values_sha256(folder: Path, through: Pass) -> str:
    """Hex sha256 of the trained values in `folder`: of the one tensor of a soft prompt, or of all of an adapter's."""
    if through == "PEFT":
        return adapter_sha256(folder)
    return tensor_sha256(load_file(folder / WEIGHTS_FILE)[TENSOR_NAME])


def _shared(base: BaseModel, soft_prompt: SoftPrompt | None, head: tuple[int, ...], objective: Classification) -> SharedPrefixRanker:
    with torch.no_grad():
        return SharedPrefixRanker(base, encode_prefixes(base, [soft_prompt], head), objective)
