"""Training through PEFT's own forward pass: for the base models and methods that the shared-prefix pass cannot serve.

These are encoder-decoders, encoders with a classification head, decoder-only families whose attention the shared pass would get
wrong, and LoRA. The scores have the meaning they have in the fast pass, so that losses and metrics can be compared.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PrefixTuningConfig
from transformers.modeling_outputs import BaseModelOutput

from pipeline.engine.base_model import BaseModel
from pipeline.engine.batching import Example, scoring_order
from pipeline.engine.objectives import Classification, Result
from pipeline.engine.peft_adapter import PeftModule
from pipeline.engine.soft_prompt import SoftPrompt
from pipeline.errors import BaseModelError


class PeftLearner:
    """Trials one after the other, each an adapter of its own on the same frozen base model; see learners.Learner.

    When a batch does not fit into GPU memory, fewer rows are run at once and their gradients added up. Raises BaseModelError when
    PEFT's forward does not work with this base model.
    """

    def __init__(
        self,
        *,
        base: BaseModel,
        head: tuple[int, ...],
        objective: Classification,
        modules: Sequence[PeftModule],
        rows_at_once: int | None = None,
        scoring_batch_size: int = 64,
    ) -> None:
        self.base, self.head, self.objective = base, head, objective
        self.modules: Sequence[PeftModule] = modules
        self.rows_at_once = rows_at_once
        self.scoring_batch_size = scoring_batch_size
        self._check_forward(modules[0])

    def backward(self, batches: Mapping[int, Sequence[Example]], weight: float) -> dict[int, float]:
        """See Learner."""
        return {trial: self._backward_one(self.modules[trial], batches[trial], weight) for trial in sorted(batches)}

    def outputs(self, trials: Sequence[int], examples: Sequence[Example]) -> torch.Tensor:
        """See Learner: log-probabilities of the labels, [E, N, C]."""
        return torch.stack([self.log_probabilities(trial, examples) for trial in trials], dim=1)

    def result(self, outputs: torch.Tensor, examples: Sequence[Example]) -> Result:
        """See Learner."""
        return self.objective.result(outputs, examples)

    def soft_prompt(self, trial: int) -> SoftPrompt | None:
        """A copy of what this trial has learnt, where that is virtual tokens before the input."""
        return self.modules[trial].soft_prompt()

    def log_probabilities(
        self, trial: int, examples: Sequence[Example], advance: Callable[[int], None] = lambda rows: None
    ) -> torch.Tensor:
        """Log-probabilities of the labels, [E, C] float32 on the CPU in the order of `examples`; `advance` is told of finished rows."""
        scores = torch.empty(len(examples), len(self.objective.verbalizers.labels))
        with torch.no_grad():
            for indices in scoring_order(examples, self.scoring_batch_size):
                found = self.scores(self.modules[trial], [examples[index] for index in indices])
                scores[indices] = found.log_softmax(-1).cpu()
                advance(len(indices))
        return scores

    def scores(self, module: PeftModule, examples: Sequence[Example]) -> torch.Tensor:
        """Score of every label for every example, [B, C] in float32: softmax over C gives the labels' probabilities.

        An encoder's score is the logit of its head. The others rank the verbalizers as shared_prefix.label_scores does: one token
        scores its logit, several the sum of their log-probabilities, divided by their number with length normalisation.
        """
        texts = [[*self.head, *example.token_ids] for example in examples]
        if self.base.architecture == "encoder":
            return module.model(**self._padded(texts)).logits.float()
        logits_of = self._encoder_decoder_logits if self.base.architecture == "encoder_decoder" else self._decoder_logits
        verbalizers = self.objective.verbalizers
        if verbalizers.single_token:
            first = [ids[0] for ids in verbalizers.token_ids]
            return next(logits_of(module.model, texts, verbalizers.token_ids[:1]))[:, 0, first].float()
        sums = [
            logits.float().log_softmax(-1)[:, range(len(ids)), list(ids)].sum(-1) / (len(ids) if self.objective.length_normalisation else 1)
            for ids, logits in zip(verbalizers.token_ids, logits_of(module.model, texts, verbalizers.token_ids), strict=True)
        ]
        return torch.stack(sums, dim=-1)

    def _check_forward(self, module: PeftModule) -> None:
        """Score one token: what a family does not take (a prefix before recurrent attention) fails deep inside, and only when it is run."""
        try:
            with torch.no_grad():
                found = list(self.scores(module, [Example((0,), 0)]).shape)
        except (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            if isinstance(error, torch.cuda.OutOfMemoryError):
                raise
            found = f"{type(error).__name__}: {error}"
        wanted = [1, len(self.objective.verbalizers.labels)]
        if found != wanted:
            adapter: Any = _adapter_config(module.model)
            kind = "no adapter" if adapter is None else adapter.peft_type.value
            raise BaseModelError(
                f"{self.base.source['id']} cannot be scored through PEFT with {kind}: scores of shape {wanted} were expected, found {found}. "
                "Choose another method or base model."
            )

    def _backward_one(self, module: PeftModule, examples: Sequence[Example], weight: float) -> float:
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        # An expert that no token was sent to leaves its LoRA without gradient; a soft prompt that is not used is an error.
        may_be_unused = isinstance(_adapter_config(module.model), LoraConfig)
        total, done = 0.0, 0
        while done < len(examples):
            chunk = examples[done : done + (self.rows_at_once or len(examples))]
            try:
                labels = torch.tensor([example.label for example in chunk], device=self.base.device)
                loss = torch.nn.functional.cross_entropy(self.scores(module, chunk), labels, reduction="sum") * weight
                # Not backward(): when memory runs out in the middle, no gradient has been added yet.
                gradients: Any = torch.autograd.grad(loss, parameters, allow_unused=may_be_unused)
            except torch.cuda.OutOfMemoryError:
                if len(chunk) == 1:
                    raise
                self.rows_at_once = len(chunk) // 2
                torch.cuda.empty_cache()
                continue
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
            total += float(loss.detach())
            done += len(chunk)
        return total

    def _decoder_logits(self, model: Any, texts: list[list[int]], verbalizers: Sequence[Sequence[int]]) -> Iterator[torch.Tensor]:
        """For each verbalizer of L tokens the logits [B, L, V] that predict them behind the texts."""
        for ids in verbalizers:
            inputs = self._padded([[*text, *ids[:-1]] for text in texts])
            logits = model(**inputs, **_no_cache(model)).logits
            # Virtual tokens are among the logits; the keys and values of a prefix are not.
            virtual = logits.shape[1] - inputs["input_ids"].shape[1]
            last = torch.tensor([virtual + len(text) - 1 for text in texts], device=logits.device)
            yield logits[
                torch.arange(len(texts), device=logits.device)[:, None], last[:, None] + torch.arange(len(ids), device=logits.device)
            ]

    def _encoder_decoder_logits(self, model: Any, texts: list[list[int]], verbalizers: Sequence[Sequence[int]]) -> Iterator[torch.Tensor]:
        """The same, with the verbalizer in the decoder; the texts are encoded once for all verbalizers."""
        inputs = self._padded(texts)
        encoded: Any = None
        for ids in verbalizers:
            before = torch.tensor([[model.config.decoder_start_token_id, *ids[:-1]]], device=self.base.device)
            output = model(**inputs, decoder_input_ids=before.expand(len(texts), -1), encoder_outputs=encoded, **_no_cache(model))
            encoded = BaseModelOutput(last_hidden_state=output.encoder_last_hidden_state)
            yield output.logits

    def _padded(self, texts: list[list[int]]) -> dict[str, torch.Tensor]:
        """Token ids and attention mask, [B, T], padded on the right."""
        width = max(len(text) for text in texts)
        input_ids = torch.zeros(len(texts), width, dtype=torch.long)
        mask = torch.zeros_like(input_ids)
        for row, text in enumerate(texts):
            input_ids[row, : len(text)] = torch.tensor(text)
            mask[row, : len(text)] = 1
        return {"input_ids": input_ids.to(self.base.device), "attention_mask": mask.to(self.base.device)}


def _no_cache(model: Any) -> dict[str, bool]:
    """Nothing is decoded step by step, so no keys and values are kept, but for those that are a prefix."""
    return {} if isinstance(_adapter_config(model), PrefixTuningConfig) else {"use_cache": False}


def _adapter_config(model: Any) -> PeftConfig | None:
    """None for the plain base model."""
    return getattr(model, "peft_config", {}).get("default")
