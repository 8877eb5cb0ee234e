"""The trials that a task's params ask for: their settings, and the learner that trains them."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.engine.base_model import BaseModel
from pipeline.engine.batching import Example
from pipeline.engine.generation import Generation
from pipeline.engine.initialisation import Initialisation, initial_embeddings
from pipeline.engine.learners import SharedPrefixLearner
from pipeline.engine.methods import MethodSettings, build_method
from pipeline.engine.objectives import Classification
from pipeline.engine.optimisation import OptimiserSettings
from pipeline.engine.peft_adapter import LoraSettings, build_peft_module
from pipeline.engine.peft_learner import PeftLearner
from pipeline.engine.shared_prefix import compile_decoder, disagreement
from pipeline.engine.soft_prompt import load_soft_prompt
from pipeline.engine.support import check_supported
from pipeline.engine.template import Template, Verbalizers
from pipeline.engine.training import TrainingSettings, TrialSettings
from pipeline.errors import BaseModelError, BundleError
from pipeline.manifest import verify_bundle
from pipeline.params import Init, Lora, TaskParams, TunedPromptInit, TuneParams
from pipeline.progress import announce


@dataclass(frozen=True)
class Plan:
    """One trial as params.yaml asks for it."""

    seed: int
    learning_rate: float
    init: Init
    num_virtual_tokens: int

    @property
    def name(self) -> str:
        """The configuration without the seed: trials of one name differ in nothing else."""
        init = ", ".join(str(value) for value in self.init.model_dump().values())
        return f"learning rate {self.learning_rate:g}, init {init}, {self.num_virtual_tokens} virtual tokens"


def trial_plans(tune: TuneParams) -> list[Plan]:
    """Every combination of the lists in `trials`; seeds vary fastest."""
    lists = (
        tune.trials.num_virtual_tokens or [tune.num_virtual_tokens],
        tune.trials.inits or [tune.init],
        tune.trials.learning_rates or [tune.learning_rate],
        tune.trials.seeds,
    )
    return [Plan(seed, rate, init, count) for count, init, rate, seed in itertools.product(*lists)]


def make_learner(
    params: TaskParams,
    base: BaseModel,
    template: Template,
    verbalizers: Verbalizers | None,
    plans: Sequence[Plan],
    examples: Sequence[Example],
) -> SharedPrefixLearner | PeftLearner:
    """The learner of these trials: over the shared-prefix pass where base model and method allow it, else through PEFT's own forward.

    Without `verbalizers` the examples have targets, which are learnt by teacher forcing, in the shared-prefix pass only.

    Raises BaseModelError when docs/methods.md refuses what is asked of the method on a base model of this architecture, or when a
    base model whose passes are to be compiled does not go through the shared-prefix pass.
    """
    tune = params.tune
    objective = Classification(verbalizers, params.prompt.length_normalisation) if verbalizers else None
    through = check_supported(
        method=tune.method.kind,
        architecture=base.architecture,
        gradient_checkpointing=tune.gradient_checkpointing,
        compiled=tune.compile,
        generation=objective is None,
        tuned_prompt_start=any(isinstance(plan.init, TunedPromptInit) for plan in plans),
    )
    rows_at_once = None if tune.rows_at_once == "auto" else tune.rows_at_once
    starts = [_start(base, verbalizers, plan, examples) for plan in plans]
    if through == "shared prefix":
        reason = disagreement(base)
        if reason is None:
            settings = _method(tune)
            modules = [
                build_method(base=base, settings=settings, embeddings=start, seed=plan.seed)
                for plan, start in zip(plans, starts, strict=True)
            ]
            if tune.compile:
                compile_decoder(base)
            return SharedPrefixLearner(
                base=base, head=template.head, objective=objective or Generation(), modules=modules, rows_at_once=rows_at_once
            )
        if tune.compile:
            raise BaseModelError(f"tune.compile is for the shared-prefix pass, which {base.source['id']} does not go through: {reason}.")
        if objective is None:
            raise BaseModelError(
                f"{base.source['id']} cannot be tuned to write answers: {reason}. Choose another base model; docs/methods.md has the tables."
            )
        announce(f"{base.source['id']} runs through PEFT's own forward pass, which is slower: {reason}.")
    assert objective is not None, "check_supported refuses generation through PEFT's forward pass"
    adapters = [
        build_peft_module(
            base=base,
            settings=_lora(tune.method) if isinstance(tune.method, Lora) else _method(tune),
            num_virtual_tokens=plan.num_virtual_tokens,
            embeddings=start,
            seed=plan.seed,
            gradient_checkpointing=tune.gradient_checkpointing,
        )
        for plan, start in zip(plans, starts, strict=True)
    ]
    return PeftLearner(base=base, head=template.head, objective=objective, modules=adapters, rows_at_once=rows_at_once)


def _method(tune: TuneParams) -> MethodSettings:
    assert not isinstance(tune.method, Lora)
    return MethodSettings(name=tune.method.kind, **tune.method.model_dump(exclude={"kind"}))


def _lora(method: Lora) -> LoraSettings:
    names = None if method.target_modules == "all-linear" else tuple(method.target_modules)
    return LoraSettings(rank=method.rank, alpha=method.alpha, target_modules=names)


def _start(base: BaseModel, verbalizers: Verbalizers | None, plan: Plan, examples: Sequence[Example]) -> torch.Tensor:
    """The embeddings [P, H] a trial starts from."""
    return initial_embeddings(
        base=base,
        num_virtual_tokens=plan.num_virtual_tokens,
        initialisation=_initialisation(plan.init, base),
        seed=plan.seed,
        verbalizers=verbalizers.token_ids if verbalizers else (),
        corpus=[example.token_ids for example in examples],
    )


def _initialisation(init: Init, base: BaseModel) -> Initialisation:
    if not isinstance(init, TunedPromptInit):
        return Initialisation(kind=init.kind, text=getattr(init, "text", ""))
    bundle = Path(init.path)
    found = verify_bundle(bundle)["soft_prompt"]["sha256"]
    if found != init.sha256:
        raise BundleError(f"{bundle} holds the soft prompt {found}, tune.init.sha256 is {init.sha256}. Correct one of them.")
    return Initialisation(kind="tuned_prompt", values=load_soft_prompt(bundle, base))


def trial_settings(plan: Plan, tune: TuneParams) -> TrialSettings:
    """What differs between trials, for the engine."""
    optimiser = OptimiserSettings(
        name=tune.optimizer,
        learning_rate=plan.learning_rate,
        weight_decay=tune.weight_decay,
        warmup_ratio=tune.warmup_ratio,
        schedule=tune.schedule,
        maximum_steps=tune.maximum_steps,
    )
    return TrialSettings(name=plan.name, seed=plan.seed, optimiser=optimiser)


def training_settings(tune: TuneParams) -> TrainingSettings:
    """What all trials share, for the engine."""
    return TrainingSettings(
        maximum_gradient_norm=tune.maximum_gradient_norm,
        batch_size=tune.batch_size,
        maximum_steps=tune.maximum_steps,
        evaluate_every=tune.evaluate_every,
        early_stopping_patience=tune.early_stopping_patience,
        metric=tune.metric,
        halving=tune.trials.halving,
        on_problem=tune.on_problem,
    )
