"""The section tune: methods, inits and trials."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from pipeline.params.section import Fraction, PositiveFloat, PositiveInt, Section, Seed


class PromptTuning(Section):
    """Virtual tokens [P, H] in front of the input (Lester et al. 2021)."""

    kind: Literal["prompt_tuning"]


class ResidualPromptTuning(Section):
    """Virtual tokens plus what a shared bottleneck network makes of them (Razdaibiedina et al. 2023)."""

    kind: Literal["residual_prompt_tuning"]
    bottleneck: PositiveInt = 128


class PTuning(Section):
    """Virtual tokens computed by an encoder (Liu et al. 2021); `encoder_hidden_size` null is the base model's."""

    kind: Literal["p_tuning"]
    encoder: Literal["MLP", "LSTM"] = "MLP"
    encoder_hidden_size: PositiveInt | None = None


class MultitaskPromptTuning(Section):
    """Virtual tokens times a low-rank matrix (Wang et al. 2023), for one task."""

    kind: Literal["multitask_prompt_tuning"]
    ranks: PositiveInt = 1


class PrefixTuning(Section):
    """Keys and values in front of every layer (Li and Liang 2021); with `projection` computed by a network."""

    kind: Literal["prefix_tuning"]
    projection: bool = False
    encoder_hidden_size: PositiveInt | None = None


def _one_message(value: Any) -> Any:
    """One message instead of one for each of the two types."""
    names: list[Any] = value if isinstance(value, list) else []  # pyright: ignore[reportUnknownVariableType]
    if value != "all-linear" and not (names and all(isinstance(name, str) and name for name in names)):
        raise ValueError(f"expected `all-linear` or a list of names of linear layers such as [q_proj, v_proj]; found {value!r}")
    return value


TargetModules = Annotated[Literal["all-linear"] | list[str], BeforeValidator(_one_message)]


class Lora(Section):
    """Low-rank factors beside the linear layers (Hu et al. 2021): the reference arm that says when prompt tuning is the wrong tool.

    `target_modules`: `all-linear` is every linear layer but the output's; a list has the ends of their names, such as q_proj.
    """

    kind: Literal["lora"]
    rank: PositiveInt = 8
    alpha: PositiveInt = 16
    target_modules: TargetModules = "all-linear"


class LoraBaselineParams(Section):
    """A LoRA trained as long as the soft prompt is, on the same examples and seeds: is prompt tuning the right tool for this task?

    Steps, batch, optimiser, schedule, evaluation and seeds are those of `tune`. Off by default, because it costs about as much again.
    """

    enabled: bool
    rank: PositiveInt
    alpha: PositiveInt
    target_modules: TargetModules
    learning_rate: PositiveFloat


class TextInit(Section):
    """Start from the embeddings of a text, repeated or cut to the number of virtual tokens."""

    kind: Literal["text"]
    text: Annotated[str, Field(min_length=1)]


class PlainInit(Section):
    """Start from the verbalizers, from a sample of the 5,000 commonest tokens of the training texts, or from uniform noise."""

    kind: Literal["class_labels", "sample_vocabulary", "random_uniform"]


class TunedPromptInit(Section):
    """Start from another tuned prompt: `path` is its bundle, `sha256` its soft prompt's (in its manifest), so that DVC notices a change."""

    kind: Literal["tuned_prompt"]
    path: str
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


Method = Annotated[PromptTuning | ResidualPromptTuning | PTuning | MultitaskPromptTuning | PrefixTuning | Lora, Field(discriminator="kind")]
Init = Annotated[TextInit | PlainInit | TunedPromptInit, Field(discriminator="kind")]


class TrialsParams(Section):
    """Trials that share one batch: every seed with every learning rate, init and length. An empty list means the one value of `tune`.

    With `halving`, the worse half of the trials is given up at each evaluation.
    """

    seeds: Annotated[list[Seed], Field(min_length=1)]
    learning_rates: list[PositiveFloat] = Field(default_factory=list[PositiveFloat])
    inits: list[Init] = Field(default_factory=list[Init])
    num_virtual_tokens: list[PositiveInt] = Field(default_factory=list[PositiveInt])
    halving: bool = False

    @field_validator("seeds", "learning_rates", "inits", "num_virtual_tokens")
    @classmethod
    def _distinct(cls, values: list[Any]) -> list[Any]:
        if any(value in values[:index] for index, value in enumerate(values)):
            raise ValueError(f"a value is listed twice: {values}; two equal trials would learn the same")
        return values


class TuneParams(Section):
    """Training of the soft prompt. `evaluate_every` and `early_stopping_patience` count steps and evaluations.

    `rows_at_once`: how many examples one pass holds; `auto` tries the whole batch and halves it when a GPU has no room. The optimiser's
    batch stays `batch_size`. `checkpoint_every` counts steps. `gradient_checkpointing` computes the layers again in the backward pass
    instead of keeping what they gave, which takes less memory and more time. `compile` lets torch.compile make kernels for the layers
    of the shared-prefix pass at the first step (and again for texts of another shape), which pays in long runs on a GPU, if at all.
    `metric` selects the step to keep: accuracy or macro_f1 of labels, exact_match or token_accuracy of free text, the latter by teacher forcing.
    """

    method: Method
    num_virtual_tokens: PositiveInt
    init: Init
    optimizer: Literal["adamw", "adafactor"]
    learning_rate: PositiveFloat
    weight_decay: Annotated[float, Field(ge=0.0)]
    warmup_ratio: Fraction
    schedule: Literal["cosine", "linear", "constant"]
    maximum_gradient_norm: PositiveFloat
    batch_size: PositiveInt
    rows_at_once: PositiveInt | Literal["auto"]
    gradient_checkpointing: bool = False
    compile: bool = False
    maximum_steps: PositiveInt
    evaluate_every: PositiveInt
    early_stopping_patience: PositiveInt
    checkpoint_every: PositiveInt
    on_problem: Literal["warn", "fail"]
    validation_rows: PositiveInt
    metric: Literal["accuracy", "macro_f1", "exact_match", "token_accuracy"]
    trials: TrialsParams

    @field_validator("rows_at_once", mode="before")
    @classmethod
    def _rows(cls, value: Any) -> Any:
        """One message instead of one for each of the two types."""
        if value != "auto" and (type(value) is not int or value < 1):
            raise ValueError(f"expected `auto` or a number of rows, at least 1; found {value!r}")
        return value
