"""What is compared: a training step of the engine, and of PEFT's model in transformers' Trainer, on the same batches.

The other side is run as its documentation runs it: PeftModel over the same base model, Trainer's own loop, right padding to the longest text of the batch, -100 on every label
but the verbalizer's token, and sdpa attention, transformers' default. What it logs, reports and saves is switched off, which
favours it.
"""

import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from benchmarks.epochs import Batches, engine_epoch, grouped_epoch, random_epoch
from pipeline.engine.base_model import BaseModel
from pipeline.engine.batching import Example, collate
from pipeline.engine.frozen_linear import multiply_by_blas, multiply_by_onednn
from pipeline.engine.hardware import deterministic_algorithms
from pipeline.engine.initialisation import embed, key_values_of
from pipeline.engine.learners import SharedPrefixLearner
from pipeline.engine.methods import MethodSettings, TunedModule, build_method
from pipeline.engine.objectives import Classification
from pipeline.engine.optimisation import OptimiserSettings
from pipeline.engine.prefix_cache import Prefix
from pipeline.engine.shared_prefix import hidden_states, logits
from pipeline.engine.template import Verbalizers
from pipeline.engine.training import TrainingSettings, TrialSettings, start_trial, take_step

Method = Literal["prompt_tuning", "prefix_tuning"]
LEARNING_RATE = 1e-3
IGNORED_LABEL = -100


@dataclass(frozen=True)
class Task:
    """A base model, the tokens all examples share, and the strings that stand for the labels, one token each."""

    base: BaseModel
    head: tuple[int, ...]
    verbalizers: Verbalizers

    def __post_init__(self) -> None:
        if not self.verbalizers.single_token:
            raise ValueError(f"these benchmarks compare one token per label, found {self.verbalizers.token_ids}; take another base model")

    def label_token(self, example: Example) -> int:
        """The token to predict after this example."""
        return self.verbalizers.token_ids[example.label][0]


@dataclass(frozen=True)
class Run:
    """Seconds of each step, and the mean of the steps' losses."""

    seconds: list[float]
    loss: float


@dataclass(frozen=True)
class Arm:
    """One side of the comparison: how it orders an epoch, and how it trains on batches from the start `[P, H]`."""

    epoch: Callable[[Sequence[Example], int], Batches]
    train: Callable[[Task, Batches, torch.Tensor], Run]


@dataclass(frozen=True)
class FullVocabulary(Classification):
    """Trainer's loss: cross-entropy of the verbalizer's token among the whole vocabulary, where ours is among the verbalizers."""

    def losses(self, base: BaseModel, prefix: Prefix, rows: Sequence[int], examples: Sequence[Example]) -> torch.Tensor:
        """Loss of each example [B]."""
        batch = collate(examples, self.verbalizers, base.device)
        scores = logits(base, hidden_states(base, prefix, rows, batch)[:, 0]).float()
        targets = torch.tensor([ids[0] for ids in self.verbalizers.token_ids], device=base.device)[batch.labels]
        return torch.nn.functional.cross_entropy(scores, targets, reduction="none")


# --- the engine -------------------------------------------------------------------------------------------------------


def start_values(base: BaseModel, num_virtual_tokens: int) -> torch.Tensor:
    """A start [P, H] that needs no tokenizer: the embeddings of tokens drawn from the vocabulary."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = base.vocabulary_embeddings().shape[0]
    return embed(base, torch.randint(0, vocabulary, (num_virtual_tokens,), generator=generator).tolist())


def engine_learner(
    task: Task, start: torch.Tensor, *, method: Method = "prompt_tuning", full_vocabulary: bool = False
) -> SharedPrefixLearner:
    """The engine with one trial."""
    module = build_method(base=task.base, settings=MethodSettings(name=method), embeddings=start, seed=0)
    objective = FullVocabulary(task.verbalizers) if full_vocabulary else Classification(task.verbalizers)
    return SharedPrefixLearner(base=task.base, head=task.head, objective=objective, modules=[module])


def train_with_engine(
    task: Task, batches: Batches, start: torch.Tensor, *, method: Method = "prompt_tuning", full_vocabulary: bool = False
) -> Run:
    """Training steps of the engine's loop from `start`."""
    return run_engine(engine_learner(task, start, method=method, full_vocabulary=full_vocabulary), batches, learning_rate=LEARNING_RATE)


def run_engine(learner: SharedPrefixLearner, batches: Batches, *, learning_rate: float) -> Run:
    """Train on the batches with Trainer's defaults (AdamW, linear to 0, gradients clipped at 1), in the deterministic mode in which the engine trains."""
    optimiser = OptimiserSettings(learning_rate=learning_rate, schedule="linear", maximum_steps=len(batches))
    settings = TrainingSettings(
        maximum_gradient_norm=1.0,
        batch_size=len(batches[0]),
        maximum_steps=len(batches),
        evaluate_every=len(batches),
        early_stopping_patience=1,
        metric="accuracy",
    )
    trial = start_trial(0, TrialSettings(name="benchmark", seed=0, optimiser=optimiser), learner.modules[0], batches[0], settings)
    trial.order = iter(batches)
    seconds: list[float] = []
    losses: list[float] = []
    with deterministic_algorithms():
        for step in range(len(batches)):
            started = now(learner.base)
            losses.append(take_step(learner, [trial], step, settings)[0]["loss"])
            seconds.append(now(learner.base) - started)
    return Run(seconds, sum(losses) / len(losses))


# --- PEFT and transformers --------------------------------------------------------------------------------------------


def peft_model(task: Task, start: torch.Tensor, method: Method = "prompt_tuning") -> Any:
    """PEFT's model over the same base model, in train() mode, whose soft prompt starts as `start`."""
    common: dict[str, Any] = {"task_type": "CAUSAL_LM", "num_virtual_tokens": start.shape[0]}
    config = PromptTuningConfig(**common) if method == "prompt_tuning" else PrefixTuningConfig(**common)
    model: Any = get_peft_model(task.base.model, config)
    weight = peft_weight(model)
    with torch.no_grad():
        weight.copy_(start if method == "prompt_tuning" else key_values_of(task.base, start))
    return model


def peft_weight(model: Any) -> torch.Tensor:
    """The soft prompt that PEFT trains."""
    return model.prompt_encoder["default"].embedding.weight


def training_row(task: Task, example: Example) -> dict[str, list[int]]:
    """The example as Trainer is given it: its text with the label's token at the end, and a label at that token alone."""
    text = [*task.head, *example.token_ids]
    return {"input_ids": [*text, task.label_token(example)], "labels": [*[IGNORED_LABEL] * len(text), task.label_token(example)]}


def pad_on_the_right(rows: Sequence[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Trainer's collator: pad to the longest of the batch."""
    longest = max(len(row["input_ids"]) for row in rows)

    def padded(name: str, filler: int) -> torch.Tensor:
        return torch.tensor([[*row[name], *[filler] * (longest - len(row[name]))] for row in rows])

    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    mask = (torch.arange(longest)[None] < lengths[:, None]).long()
    return {"input_ids": padded("input_ids", 0), "attention_mask": mask, "labels": padded("labels", IGNORED_LABEL)}


class InGivenOrder(Trainer):
    """Trainer over rows that already lie in the order its sampler gave them."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset if train_dataset is None else train_dataset)


class StepTimes(TrainerCallback):
    """When training began and when each step ended."""

    def __init__(self, base: BaseModel) -> None:
        self.base = base
        self.moments: list[float] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Start the clock."""
        self.moments.append(now(self.base))

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Stop it for this step."""
        self.moments.append(now(self.base))


def train_with_trainer(task: Task, batches: Batches, start: torch.Tensor, *, method: Method = "prompt_tuning") -> Run:
    """Training steps of Trainer's loop from `start`."""
    return run_trainer(task, peft_model(task, start, method), batches, learning_rate=LEARNING_RATE, seed=0)


def run_trainer(task: Task, model: Any, batches: Batches, *, learning_rate: float, seed: int) -> Run:
    """Train PEFT's model on the batches with Trainer's defaults."""
    on_cpu = task.base.device.type == "cpu"
    times = StepTimes(task.base)
    with tempfile.TemporaryDirectory() as folder, as_transformers_loads_it(task.base):
        trainer = InGivenOrder(
            model=model,
            args=TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=len(batches[0]),
                num_train_epochs=1,
                learning_rate=learning_rate,
                seed=seed,
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=on_cpu,
                dataloader_pin_memory=not on_cpu,
            ),
            train_dataset=[training_row(task, example) for batch in batches for example in batch],
            data_collator=pad_on_the_right,
            callbacks=[times],
        )
        trainer.remove_callback(PrinterCallback)
        loss = trainer.train().training_loss
    task.base.model.eval()
    return Run([end - begin for begin, end in zip(times.moments, times.moments[1:], strict=False)], loss)


@contextmanager
def as_transformers_loads_it(base: BaseModel) -> Generator[None]:
    """Within it the base model uses sdpa, what transformers chooses by itself, and torch's linear layers; afterwards the engine's again."""
    base.model.set_attn_implementation("sdpa")
    multiply_by_blas(base.model)
    try:
        yield
    finally:
        base.model.set_attn_implementation(base.attention)
        multiply_by_onednn(base.model)


def now(base: BaseModel) -> float:
    """Seconds on a clock, read when the device has finished."""
    if base.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


# --- the comparison ---------------------------------------------------------------------------------------------------

TRAINER, GROUPED, PREFIX = "PEFT + Trainer", "PEFT + Trainer, length grouping", "PEFT + Trainer, prefix tuning"
ENGINE, ENGINE_FULL, ENGINE_PREFIX = "engine", "engine, full-vocabulary loss", "engine, prefix tuning"

ARMS: dict[str, Arm] = {
    TRAINER: Arm(random_epoch, train_with_trainer),
    GROUPED: Arm(grouped_epoch, train_with_trainer),
    PREFIX: Arm(random_epoch, lambda task, batches, start: train_with_trainer(task, batches, start, method="prefix_tuning")),
    ENGINE: Arm(engine_epoch, train_with_engine),
    ENGINE_FULL: Arm(engine_epoch, lambda task, batches, start: train_with_engine(task, batches, start, full_vocabulary=True)),
    ENGINE_PREFIX: Arm(engine_epoch, lambda task, batches, start: train_with_engine(task, batches, start, method="prefix_tuning")),
}


def gradient_error(task: Task, batch: Sequence[Example], start: torch.Tensor, method: Method = "prompt_tuning") -> dict[str, float]:
    """The engine's loss and gradient against PEFT's on one batch with the same loss: relative difference in the 2-norm, best 0."""
    learner = engine_learner(task, start, method=method, full_vocabulary=True)
    loss = learner.backward({0: batch}, 1 / len(batch))[0]
    module = learner.modules[0]
    assert isinstance(module, TunedModule)
    found = next(parameter for parameter in module.parameters() if parameter.requires_grad).grad
    with as_transformers_loads_it(task.base):
        model = peft_model(task, start, method)
        inputs = {
            name: tensor.to(task.base.device) for name, tensor in pad_on_the_right([training_row(task, one) for one in batch]).items()
        }
        expected_loss = model(**inputs).loss
        expected_loss.backward()
    task.base.model.eval()
    expected = peft_weight(model).grad
    assert found is not None
    assert expected is not None
    return {
        "engine_loss": loss,
        "peft_loss": float(expected_loss.detach()),
        "gradient_norm": float(expected.norm()),
        "relative_error": float((found - expected).norm() / expected.norm()),
    }
