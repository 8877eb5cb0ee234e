"""A small training task that a soft prompt on a tiny model can learn, and how the parts are put together for it."""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pipeline.engine.base_model import BaseModel
from pipeline.engine.batching import Example
from pipeline.engine.initialisation import Initialisation, initial_embeddings
from pipeline.engine.learners import Learner, SharedPrefixLearner
from pipeline.engine.methods import MethodSettings, build_method
from pipeline.engine.objectives import Classification
from pipeline.engine.optimisation import OptimiserSettings
from pipeline.engine.soft_prompt import tensor_sha256
from pipeline.engine.template import Verbalizers
from pipeline.engine.training import TrainingResult, TrainingSettings, TrialSettings, train

VERBALIZERS = Verbalizers(("a", "b"), ((60,), (61,)))
# Two kinds of texts that differ in their first token: a soft prompt can learn to tell them apart.
EXAMPLES = [Example([30 + 10 * (index % 2), 25, 26, *range(70, 70 + index % 5)], index % 2) for index in range(40)]
OPTIMISERS = {
    "adamw": OptimiserSettings(name="adamw", learning_rate=0.05, warmup_ratio=0.1, maximum_steps=40),
    "adafactor": OptimiserSettings(name="adafactor", learning_rate=0.3, warmup_ratio=0.1, schedule="constant", maximum_steps=40),
}
SETTINGS = TrainingSettings(
    maximum_gradient_norm=1.0, batch_size=8, maximum_steps=40, evaluate_every=10, early_stopping_patience=10, metric="accuracy"
)
TIMING = {"seconds", "examples_per_second", "seconds_left"}


def shuffled_labels() -> list[Example]:
    """The same texts with labels that have nothing to do with them."""
    labels = [example.label for example in EXAMPLES]
    random.Random(1).shuffle(labels)
    return [Example(example.token_ids, label) for example, label in zip(EXAMPLES, labels, strict=True)]


def tiny_learner(base: BaseModel, trials: int = 1, num_virtual_tokens: int = 5) -> SharedPrefixLearner:
    """A learner of `trials` soft prompts that start alike."""
    start = Initialisation(kind="text", text="the plane was late")
    embeddings = initial_embeddings(base=base, num_virtual_tokens=num_virtual_tokens, initialisation=start, seed=0)
    method = MethodSettings(name="prompt_tuning")
    return SharedPrefixLearner(
        base=base,
        head=(20,),
        objective=Classification(VERBALIZERS),
        modules=[build_method(base=base, settings=method, embeddings=embeddings, seed=seed) for seed in range(trials)],
    )


def run(
    base: BaseModel,
    *,
    trials: int = 1,
    seed: int = 0,
    optimiser: OptimiserSettings = OPTIMISERS["adamw"],
    settings: TrainingSettings = SETTINGS,
    examples: list[Example] = EXAMPLES,
    validation: list[Example] = EXAMPLES,
    learner: Learner | None = None,
    on_record: Callable[[dict[str, Any]], None] = lambda record: None,
    checkpoint: Any = None,
    stop: Callable[[], bool] = lambda: False,
    **changes: Any,
) -> TrainingResult:
    """Train `trials` trials with the seeds from `seed` on; `changes` are to the settings."""
    steps = changes.get("maximum_steps", settings.maximum_steps)
    return train(
        learner=tiny_learner(base, trials) if learner is None else learner,
        trials=[
            TrialSettings(name="tiny", seed=seed + index, optimiser=replace(optimiser, maximum_steps=steps)) for index in range(trials)
        ],
        train=examples,
        validation=validation,
        settings=replace(settings, **changes),
        on_record=on_record,
        checkpoint=checkpoint,
        stop=stop,
    )


def fingerprint(result: TrainingResult, records: list[dict[str, Any]]) -> dict[str, Any]:
    """What two equal runs have in common, as JSON: every bit of the records apart from times, and of all trials' tensors."""
    return {
        "records": [{key: repr(value) for key, value in record.items() if key not in TIMING} for record in records],
        "best": [result.best_trial, result.best_step, result.steps],
        "sha256": [{name: tensor_sha256(value.detach()) for name, value in trial.module.state_dict().items()} for trial in result.trials],
        "ended": [trial.ended for trial in result.trials],
    }
