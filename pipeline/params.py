"""params.yaml as frozen, typed models.

The file holds `defaults` and `tasks.<name>`, each with the same sections; a task's section is merged over the default one.
DVC tracks the two raw sections (`defaults.tune`, `tasks.<name>.tune`), the code sees the merged and typed one.
All errors are collected and reported together, each with the dotted path of the place in the file that holds it.
The file is read as YAML 1.2 by the parser DVC uses, so that `yes`, `no` and `on` can be labels and `1e-3` is a number.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from pipeline.errors import ParamsError
from pipeline.params_file import describe, listed, merge, read_yaml

TASK_NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}")  # no dot: DVC would read tasks.a.b.tune as a path and track nothing
RESERVED_COLUMNS = frozenset({"row_id", "source_row", "label", "label_confidence", "text_for_people", "rule", "reason"})

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
OpenFraction = Annotated[float, Field(gt=0.0, lt=1.0)]
PositiveInt = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Section(BaseModel):
    """Base of every params section: frozen, no unknown keys, no silent conversion between types, no NaN or infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())


# --- ingest -----------------------------------------------------------------------------------------------------------


class PackageFileSource(Section):
    """A delimited text file inside an installed Python package; the package itself is never imported."""

    kind: Literal["package_file"]
    package: str
    path: str
    encoding: str = "utf-8"
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] = ","


class FileSource(Section):
    """A delimited text file; `path` is relative to the folder of params.yaml."""

    kind: Literal["file"]
    path: str
    encoding: str = "utf-8"
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] = ","


class Columns(Section):
    """Which source column plays which part. `fields` maps the name used in `{braces}` of templates to a source column."""

    fields: Annotated[dict[str, str], Field(min_length=1)]
    label: str
    label_confidence: str | None = None

    @field_validator("fields")
    @classmethod
    def _field_names(cls, fields: dict[str, str]) -> dict[str, str]:
        for name in fields:
            if not name.isidentifier() or name in RESERVED_COLUMNS:
                raise ValueError(f"{name!r} cannot be a field name: use an identifier other than {sorted(RESERVED_COLUMNS)}")
        return fields


class IngestParams(Section):
    """Where labelled rows come from. `sample_rows`: how many to draw (seeded, without replacement); null takes all."""

    source: Annotated[PackageFileSource | FileSource, Field(discriminator="kind")]
    columns: Columns
    sample_rows: PositiveInt | None = None
    seed: Seed = 0


# --- validate ---------------------------------------------------------------------------------------------------------


class ValidateParams(Section):
    """The data contract. Row rules quarantine single rows; expectations of severity critical block the run."""

    minimum_rows: PositiveInt
    minimum_accepted_share: Fraction
    minimum_text_characters: PositiveInt = 1
    maximum_text_characters: PositiveInt
    low_label_confidence: Literal["quarantine", "keep"]
    minimum_label_confidence: Fraction
    duplicates: Literal["keep_first", "keep_all"]
    conflicting_labels: Literal["quarantine", "keep"]


# --- split ------------------------------------------------------------------------------------------------------------


class SplitParams(Section):
    """Shares of the accepted rows; what remains is the training split. `test_rows`/`validation_rows` cap the size."""

    validation_share: OpenFraction
    test_share: OpenFraction
    seed: Seed = 0

    @model_validator(mode="after")
    def _room_for_training(self) -> "SplitParams":
        if self.validation_share + self.test_share >= 1.0:
            raise ValueError("validation_share + test_share must stay below 1, or no training rows remain")
        return self


# --- prompt and base model --------------------------------------------------------------------------------------------


class PromptParams(Section):
    """How an example is shown to the base model.

    `template`: the text around the fields, behind the soft prompt. `verbalizers`: label -> the string that stands for it,
    including its leading space; with `length_normalisation` the score of one that is several tokens long is their mean
    log-probability. `hard_prompts`: candidate instructions; the best one on validation is the baseline. An encoder can answer none: it has [].
    """

    template: str
    verbalizers: Annotated[dict[str, str], Field(min_length=2)]
    length_normalisation: bool
    hard_prompts: list[str]
    maximum_field_tokens: PositiveInt

    @field_validator("verbalizers")
    @classmethod
    def _distinct(cls, verbalizers: dict[str, str]) -> dict[str, str]:
        if len(set(verbalizers.values())) != len(verbalizers):
            raise ValueError(f"two labels share one verbalizer: {verbalizers}")
        if any(not value.strip() for value in verbalizers.values()):
            raise ValueError(f"an empty verbalizer cannot stand for a label: {verbalizers}")
        return verbalizers

    @property
    def labels(self) -> tuple[str, ...]:
        """The closed label set, in the order of the verbalizers."""
        return tuple(self.verbalizers)


class PackageBaseModel(Section):
    """A GGUF file inside an installed Python package, converted once to safetensors in the model cache.

    `package` is a plain name, as finding a package inside another one imports the outer one; `path` may lead into folders.
    """

    kind: Literal["package_gguf"]
    id: str
    package: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
    path: str


class GgufBaseModel(Section):
    """A local GGUF file, converted once to safetensors in the model cache; a relative path starts at the folder of params.yaml."""

    kind: Literal["gguf"]
    id: str
    path: str


class DirectoryBaseModel(Section):
    """A local folder in Hugging Face format; a relative path starts at the folder of params.yaml."""

    kind: Literal["directory"]
    id: str
    path: str


class HubBaseModel(Section):
    """A model on the Hugging Face hub at a fixed revision (a commit hash or tag)."""

    kind: Literal["hub"]
    id: str
    revision: str


class BaseModelParams(Section):
    """The frozen language model. `dtype: auto` takes bfloat16 where the hardware multiplies it natively, else float32.

    `device_map: auto` spreads a model that is too large for one GPU over all of them.
    """

    source: Annotated[PackageBaseModel | GgufBaseModel | DirectoryBaseModel | HubBaseModel, Field(discriminator="kind")]
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    attention: Literal["auto", "eager", "sdpa", "flex_attention"] = "auto"
    device_map: Literal["none", "auto"] = "none"


# --- tune -------------------------------------------------------------------------------------------------------------


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


class Lora(Section):
    """Low-rank factors beside the linear layers (Hu et al. 2021): the reference arm that says when prompt tuning is the wrong tool."""

    kind: Literal["lora"]
    rank: PositiveInt = 8
    alpha: PositiveInt = 16


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
PositiveFloat = Annotated[float, Field(gt=0.0)]


class TrialsParams(Section):
    """Trials that share one batch: every seed with every learning rate, init and length. An empty list means the one value of `tune`.

    With `halving`, the worse half of the trials is given up at each evaluation.
    """

    seeds: Annotated[list[Seed], Field(min_length=1)]
    learning_rates: list[PositiveFloat] = []
    inits: list[Init] = []
    num_virtual_tokens: list[PositiveInt] = []
    halving: bool = False

    @field_validator("seeds", "learning_rates", "inits", "num_virtual_tokens")
    @classmethod
    def _distinct(cls, values: list[Any]) -> list[Any]:
        if any(value in values[:index] for index, value in enumerate(values)):
            raise ValueError(f"a value is listed twice: {values}; two equal trials would learn the same")
        return values


class TuneParams(Section):
    """Training of the soft prompt. `evaluate_every` and `early_stopping_patience` count steps and evaluations.

    `rows_at_once`: how many examples one pass holds; null tries the whole batch and halves it when a GPU has no room. The optimiser's
    batch stays `batch_size`. `checkpoint_every` counts steps. `gradient_checkpointing` computes the layers again in the backward pass
    instead of keeping what they gave, which takes less memory and more time.
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
    rows_at_once: PositiveInt | None
    gradient_checkpointing: bool = False
    maximum_steps: PositiveInt
    evaluate_every: PositiveInt
    early_stopping_patience: PositiveInt
    checkpoint_every: PositiveInt
    on_problem: Literal["warn", "fail"]
    validation_rows: PositiveInt
    metric: Literal["accuracy", "macro_f1"]
    trials: TrialsParams


class ScoreParams(Section):
    """Scoring of the test split. `hard_prompt_selection_rows`: validation rows on which the candidates compete."""

    batch_size: PositiveInt
    hard_prompt_selection_rows: PositiveInt


# --- evaluate, assess_fairness, gate ----------------------------------------------------------------------------------


class EvaluateParams(Section):
    """Bootstrap intervals of the metrics."""

    bootstrap_replicates: Annotated[int, Field(ge=200)]
    confidence_level: OpenFraction
    seed: Seed


class TextGroups(Section):
    """Groups that are a property of the text: a row belongs to a group when its text matches the regular expression."""

    derived_from: Literal["text"]
    patterns: Annotated[dict[str, str], Field(min_length=1)]

    @field_validator("patterns")
    @classmethod
    def _compilable(cls, patterns: dict[str, str]) -> dict[str, str]:
        for name, pattern in patterns.items():
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"pattern of group {name!r} is not a regular expression: {pattern!r} ({error})") from None
        return patterns


class AssessFairnessParams(Section):
    """Disaggregated metrics. Below `minimum_denominator` rows a group's figure is INSUFFICIENT, never a pass."""

    groups: dict[str, TextGroups]
    minimum_denominator: PositiveInt
    confidence_level: OpenFraction


def gate_metrics(labels: Iterable[str]) -> list[str]:
    """The metrics a minimum can be set on (more is better): accuracy, macro_f1, per_class.<label>.precision, .recall and .f1."""
    return ["accuracy", "macro_f1", *(f"per_class.{label}.{name}" for label in labels for name in ("precision", "recall", "f1"))]


class ValueThreshold(Section):
    """A limit on one metric of the tuned prompt, judged by the end of its interval that is worse."""

    metric: str
    minimum: float


class ChangeThreshold(Section):
    """A limit on tuned minus baseline, on the same rows: the point value reaches `minimum_gain`, the interval excludes 0."""

    metric: Literal["accuracy", "macro_f1"]
    baseline: Literal["hard_prompt", "majority_class"]
    minimum_gain: Annotated[float, Field(ge=0.0)]


def _distinct_groups(groups: list[str]) -> list[str]:
    """A group compared with itself differs by 0 and would pass any limit."""
    if len(set(groups)) != len(groups):
        raise ValueError(f"a group is listed twice: {groups}")
    return groups


class GroupThreshold(Section):
    """A floor on one metric for each listed group of one attribute, judged by the lower end of its interval."""

    attribute: str
    metric: Literal["accuracy"]
    groups: Annotated[list[str], Field(min_length=1), AfterValidator(_distinct_groups)]
    minimum: Fraction


class DifferenceThreshold(Section):
    """A limit on the largest difference of a metric between two of the listed groups, judged by the interval's upper end."""

    attribute: str
    metric: Literal["accuracy"]
    groups: Annotated[list[str], Field(min_length=2), AfterValidator(_distinct_groups)]
    maximum: Fraction


class DegeneracyThreshold(Section):
    """No label may take more than this share of the predictions, and each label must be predicted at least once."""

    maximum_prediction_share: OpenFraction


class GateParams(Section):
    """The promotion rule. Without value thresholds nothing can be promoted."""

    minimum_test_rows: PositiveInt
    value_thresholds: Annotated[list[ValueThreshold], Field(min_length=1)]
    change_thresholds: list[ChangeThreshold]
    group_thresholds: list[GroupThreshold]
    difference_thresholds: list[DifferenceThreshold]
    degeneracy: DegeneracyThreshold


class ReportParams(Section):
    """The prompt card."""

    title: str
    description: str
    examples: PositiveInt
    seed: Seed


class TaskParams(Section):
    """All sections of one task after merging `tasks.<name>` over `defaults`."""

    ingest: IngestParams
    validate_: Annotated[ValidateParams, Field(alias="validate")]
    split: SplitParams
    prompt: PromptParams
    base_model: BaseModelParams
    tune: TuneParams
    score: ScoreParams
    evaluate: EvaluateParams
    assess_fairness: AssessFairnessParams
    gate: GateParams
    report: ReportParams

    @model_validator(mode="after")
    def _sections_agree(self) -> "TaskParams":
        problems = [*_field_problems(self), *_metric_problems(self), *_baseline_problems(self), *_group_problems(self)]
        if problems:
            summary = "; ".join(f"{path}: {problem}" for path, problem in problems)
            raise PydanticCustomError("sections_disagree", "{summary}", {"summary": summary, "problems": problems})
        return self


def _field_problems(params: TaskParams) -> Iterator[tuple[str, str]]:
    """(dotted path, problem) of each template that does not use the fields of ingest."""
    known = sorted(params.ingest.columns.fields)
    candidates = {f"hard_prompts.{index}": template for index, template in enumerate(params.prompt.hard_prompts)}
    for where, template in {"template": params.prompt.template, **candidates}.items():
        used = sorted(set(placeholders(template)))
        if not used or not set(used) <= set(known):
            yield (
                f"prompt.{where}",
                f"uses the fields {used}, ingest.columns.fields defines {known}; use at least one of those, and no other",
            )


def _metric_problems(params: TaskParams) -> Iterator[tuple[str, str]]:
    """(dotted path, problem) of each value threshold on something that is no metric, before a prompt is tuned for nothing."""
    known = gate_metrics(params.prompt.labels)
    for index, threshold in enumerate(params.gate.value_thresholds):
        if threshold.metric not in known:
            yield f"gate.value_thresholds.{index}.metric", f"a minimum on {threshold.metric!r} cannot be judged; choose one of {known}"


def _baseline_problems(params: TaskParams) -> Iterator[tuple[str, str]]:
    """(dotted path, problem) of each change threshold against a hard prompt when there is none."""
    for index, threshold in enumerate(params.gate.change_thresholds):
        if threshold.baseline == "hard_prompt" and not params.prompt.hard_prompts:
            yield f"gate.change_thresholds.{index}.baseline", "prompt.hard_prompts is empty, so there is no hard_prompt; use majority_class"


def _group_problems(params: TaskParams) -> Iterator[tuple[str, str]]:
    """(dotted path, problem) of each threshold of the gate that names a group nobody defines."""
    for kind in ("group_thresholds", "difference_thresholds"):
        thresholds: list[GroupThreshold | DifferenceThreshold] = getattr(params.gate, kind)
        for index, threshold in enumerate(thresholds):
            attribute = params.assess_fairness.groups.get(threshold.attribute)
            known = sorted(attribute.patterns) if attribute else []
            unknown = [group for group in threshold.groups if group not in known]
            if unknown:
                where = f"assess_fairness.groups.{threshold.attribute}"
                yield f"gate.{kind}.{index}", f"names the groups {unknown} of {threshold.attribute!r}, {where} defines {known}"


SECTIONS: tuple[str, ...] = tuple(field.alias or name for name, field in TaskParams.model_fields.items())


def placeholders(template: str) -> list[str]:
    """Names in `{braces}` of a template, in order of appearance."""
    return re.findall(r"\{([A-Za-z_][A-Za-z0-9_]*)\}", template)


def load(path: Path) -> dict[str, TaskParams]:
    """Read params.yaml and return every task, typed; raises ParamsError with all errors of all tasks together."""
    document = read_yaml(path)
    errors: list[str] = []
    defaults, tasks = _top_level(document, errors)
    typed: dict[str, TaskParams] = {}
    for name, sections in tasks.items():
        if not TASK_NAME.fullmatch(str(name)):
            errors.append(f"tasks.{name}: a task name is 1 to 64 of a-z 0-9 _ - and starts with a letter")
        elif not isinstance(sections, Mapping):
            errors.append(f"tasks.{name}: expected a mapping of sections, found {sections!r}")
        else:
            _type_task(name, defaults, cast(Mapping[str, Any], sections), typed, errors)
    distinct = list(dict.fromkeys(errors))  # a wrong default shows up in every task
    if distinct:
        raise listed(path, distinct)
    return typed


def load_task(path: Path, task: str) -> TaskParams:
    """Read params.yaml and return one task; raises ParamsError naming the known tasks when there is none of that name."""
    tasks = load(path)
    if task not in tasks:
        raise ParamsError(
            f"{path} has no task {task!r}; it has: {', '.join(sorted(tasks))}. Add a section tasks.{task} or correct the name."
        )
    return tasks[task]


def _top_level(document: Mapping[str, Any], errors: list[str]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    errors.extend(f"{key}: unknown key; the top level holds `defaults` and `tasks`" for key in document if key not in ("defaults", "tasks"))
    found: list[Mapping[str, Any]] = []
    for name in ("defaults", "tasks"):
        value = document.get(name)
        if not isinstance(value, Mapping) or (name == "tasks" and not value):
            errors.append(f"{name}: expected a mapping that is not empty, found {value!r}")
            value = {}
        found.append(cast(Mapping[str, Any], value))
    errors.extend(_section_errors("defaults", found[0]).values())
    return found[0], found[1]


def _section_errors(where: str, sections: Mapping[str, Any]) -> dict[str, str]:
    """Section name -> what is wrong with the section as a whole. DVC tracks params by section, so each must be present."""
    unknown = {name: f"{where}.{name}: unknown section; known: {', '.join(SECTIONS)}" for name in sections if name not in SECTIONS}
    absent = {
        name: f"{where}.{name}: missing section; write `{name}: {{}}` when there is nothing to set"
        for name in SECTIONS
        if name not in sections
    }
    not_mapping = {
        name: f"{where}.{name}: expected a mapping, found {sections[name]!r}"
        for name in SECTIONS
        if name in sections and not isinstance(sections[name], Mapping)
    }
    return unknown | absent | not_mapping


def _type_task(
    name: str, defaults: Mapping[str, Any], sections: Mapping[str, Any], typed: dict[str, TaskParams], errors: list[str]
) -> None:
    """Add the typed task to `typed`, or what is wrong with it to `errors`; a section that is broken as a whole is said once."""
    broken = _section_errors(f"tasks.{name}", sections)
    errors.extend(broken.values())
    broken |= _section_errors("defaults", defaults)
    sound = [section for section in SECTIONS if section not in broken]
    merged = merge({section: defaults[section] for section in sound}, {section: sections[section] for section in sound})
    try:
        params = TaskParams.model_validate(merged)
    except ValidationError as error:
        details = [detail for detail in error.errors() if not detail["loc"] or detail["loc"][0] not in broken]
        errors.extend(line for detail in details for line in describe(detail, name, defaults, sections))
    else:
        typed[name] = params
