"""A task's sections together, and reading them from params.yaml."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from pipeline.errors import ParamsError
from pipeline.layout import TASK_NAME, TASK_NAME_RULE, TEMPLATE_SUFFIX
from pipeline.params.behaviour import BehaviourParams
from pipeline.params.data import DriftParams, ProfileParams, ReferenceParams, SplitParams, ValidateParams
from pipeline.params.deployment import DeploymentParams, FleetParams
from pipeline.params.evaluation import AssessFairnessParams, CompareParams, EvaluateParams, ReportParams, ScoreParams
from pipeline.params.execution import ExecutionParams
from pipeline.params.free_text import TEXT_METRICS, free_text_problems
from pipeline.params.gate import (
    ChangeThreshold,
    DifferenceThreshold,
    GateParams,
    GroupThreshold,
    Guard,
    RelativeDifferenceThreshold,
    gate_metrics,
)
from pipeline.params.ingest import IngestParams
from pipeline.params.promotion import PromotionParams
from pipeline.params.prompt import BaseModelParams, PromptParams
from pipeline.params.section import Section, placeholders
from pipeline.params.tune import Lora, LoraBaselineParams, TuneParams
from pipeline.params_file import describe, describe_at, listed, merge, read_yaml
from pipeline.variants import CHAMPION, HARD_PROMPT, LORA, TUNED, task_variants

FLEET = "fleet"
NO_HARD_PROMPTS = "prompt.hard_prompts is empty"


class TaskParams(Section):
    """All sections of one task after merging `tasks.<name>` over `defaults`."""

    ingest: IngestParams
    validate_: Annotated[ValidateParams, Field(alias="validate")]
    split: SplitParams
    profile: ProfileParams
    reference: ReferenceParams
    drift: DriftParams
    prompt: PromptParams
    base_model: BaseModelParams
    tune: TuneParams
    lora_baseline: LoraBaselineParams
    score: ScoreParams
    evaluate: EvaluateParams
    compare: CompareParams
    assess_fairness: AssessFairnessParams
    behaviour: BehaviourParams
    gate: GateParams
    report: ReportParams
    promotion: PromotionParams
    deployment: DeploymentParams
    execution: ExecutionParams

    @model_validator(mode="after")
    def _sections_agree(self) -> "TaskParams":
        answer = list(_answer_problems(self))
        problems = [*answer, *_field_problems(self), *_group_problems(self), *_behaviour_problems(self)]
        if not answer:  # else nothing says which metrics and baselines there are
            problems += [*free_text_problems(self), *_metric_problems(self), *_baseline_problems(self), *_lora_problems(self)]
        if problems:
            summary = "; ".join(f"{path}: {problem}" for path, problem in problems)
            raise PydanticCustomError("sections_disagree", "{summary}", {"summary": summary, "problems": problems})
        return self


def _answer_problems(params: TaskParams) -> Iterator[tuple[str, str]]:
    """(dotted path, problem) where the verbalizers do not fit the kind of answer: two or more for labels, none for free text."""
    count = len(params.prompt.verbalizers)
    if params.ingest.columns.target is None and not count:
        yield "prompt.verbalizers", "empty; give one for each label (ingest.columns.label)"
    if params.ingest.columns.target is not None and count:
        yield (
            "prompt.verbalizers",
            f"free text (ingest.columns.target) has no verbalizers, found {count}; write {{}} or map ingest.columns.label",
        )


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
    external = params.split.external_test
    if external is not None and sorted(external.fields) != known:
        yield (
            "split.external_test.fields",
            f"has the fields {sorted(external.fields)}, ingest.columns.fields defines {known}; give the same",
        )


def _metric_problems(params: TaskParams) -> Iterator[tuple[str, str]]:
    """(dotted path, problem) of each value threshold on something that is no metric, before a prompt is tuned for nothing."""
    known = gate_metrics(params.prompt.labels)
    for index, threshold in enumerate(params.gate.value_thresholds):
        if threshold.metric not in known:
            yield f"gate.value_thresholds.{index}.metric", f"a minimum on {threshold.metric!r} cannot be judged; choose one of {known}"
    main, key = main_metric(params)
    if main not in [threshold.metric for threshold in params.gate.value_thresholds]:
        yield "gate.value_thresholds", f"has no minimum on {main}, the main metric ({key}): add {{metric: {main}, minimum: ...}}"


def main_metric(params: TaskParams) -> tuple[str, str]:
    """The metric that versions of the task are compared by, and the key that says so."""
    if params.prompt.free_text:
        return params.prompt.generation_settings.metric, "prompt.generation.metric"
    return params.compare.metric, "compare.metric"


def _baseline_problems(params: TaskParams) -> Iterator[tuple[str, str]]:
    """(dotted path, problem) of each limit on a metric, or against a baseline, that the task does not have."""
    scored = task_variants(params)
    others = " or ".join(name for name in scored if name != TUNED)
    metrics = TEXT_METRICS if params.prompt.free_text else ("accuracy", "macro_f1")
    no_prompts = not params.prompt.hard_prompts
    reasons = {"lora": "lora_baseline.enabled is false", "few_shot": "score.few_shot_per_label is 0"}
    for kind in ("change_thresholds", "guards"):
        thresholds: list[ChangeThreshold | Guard] = getattr(params.gate, kind)
        for index, threshold in enumerate(thresholds):
            if threshold.metric not in metrics:
                where = f"gate.{kind}.{index}.metric"
                yield where, f"a difference in {threshold.metric!r} cannot be judged; choose one of {list(metrics)}"
            if threshold.baseline == CHAMPION:
                continue
            elif threshold.baseline not in scored and params.prompt.free_text:
                yield f"gate.{kind}.{index}.baseline", f"this task has no {threshold.baseline}; use {others}"
            elif threshold.baseline not in scored:
                said = (
                    NO_HARD_PROMPTS
                    if no_prompts and threshold.baseline != LORA
                    else reasons.get(threshold.baseline, "this task answers labels")
                )
                yield f"gate.{kind}.{index}.baseline", f"{said}, so there is no {threshold.baseline}; use {others}"
    if HARD_PROMPT in scored:
        return
    for name, limit in params.gate.cost:
        if limit is not None:
            yield f"gate.cost.{name}", f"{NO_HARD_PROMPTS}, so there is no hard_prompt to compare the cost with; write null"


def _lora_problems(params: TaskParams) -> Iterator[tuple[str, str]]:
    """(dotted path, problem) where a LoRA baseline is asked for that cannot be trained, or would be compared with itself."""
    if not params.lora_baseline.enabled:
        return
    if params.prompt.free_text:
        yield "lora_baseline.enabled", "LoRA is trained to answer labels only, and ingest.columns.target is free text; write false"
    if isinstance(params.tune.method, Lora):
        yield "lora_baseline.enabled", "tune.method is lora already, which would be compared with itself; write false"


def _group_problems(params: TaskParams) -> Iterator[tuple[str, str]]:
    """(dotted path, problem) of each attribute without its column, and each threshold of the gate that names a group nobody defines."""
    mapped = sorted(params.ingest.columns.groups)
    for name in params.assess_fairness.columns:
        if name not in mapped:
            yield f"assess_fairness.columns.{name}", f"is no group column, ingest.columns.groups defines {mapped}; map the column there"
    defined = params.assess_fairness.defined_groups()
    for path, attribute, groups in _listed_groups(params.gate):
        known = defined.get(attribute, [])
        unknown = [group for group in groups if group not in known]
        if unknown:
            yield path, f"names the groups {unknown} of {attribute!r}, assess_fairness.groups.{attribute} defines {known}"
    for path, labels in _listed_labels(params.gate):
        strange = [label for label in labels if label not in params.prompt.labels]
        if strange:
            yield path, f"names the labels {strange}, prompt.verbalizers defines {list(params.prompt.labels)}"


def _listed_groups(gate: GateParams) -> Iterator[tuple[str, str, list[str]]]:
    """(dotted path, attribute, groups) of everything in the gate that lists groups."""
    for kind in ("group_thresholds", "difference_thresholds", "relative_difference_thresholds"):
        thresholds: list[GroupThreshold | DifferenceThreshold | RelativeDifferenceThreshold] = getattr(gate, kind)
        for index, threshold in enumerate(thresholds):
            yield f"gate.{kind}.{index}", threshold.attribute, threshold.groups
    for index, floor in enumerate(gate.slices.thresholds):
        yield f"gate.slices.thresholds.{index}", floor.by, floor.groups


def _listed_labels(gate: GateParams) -> Iterator[tuple[str, list[str]]]:
    """(dotted path, labels) of each threshold on groups that names labels."""
    for index, floor in enumerate(gate.group_thresholds):
        yield f"gate.group_thresholds.{index}", [floor.label] if floor.label else []
    for index, difference in enumerate(gate.difference_thresholds):
        yield f"gate.difference_thresholds.{index}", difference.labels
    for index, relative in enumerate(gate.relative_difference_thresholds):
        yield f"gate.relative_difference_thresholds.{index}", relative.labels


def _behaviour_problems(params: TaskParams) -> Iterator[tuple[str, str]]:
    """(dotted path, problem) where the probes do not fit the task's fields and labels, or the gate limits a probe that is not asked."""
    section, labels, fields = params.behaviour, params.prompt.labels, sorted(params.ingest.columns.fields)
    if params.ingest.columns.target is not None and not labels and (section.asks_labels or section.bias_pairs):
        yield "behaviour", "probes ask for labels, and free text (ingest.columns.target) has none; leave every probe out"
    unknown = [label for label in section.test_labels() if labels and label not in labels]
    if unknown:
        yield "behaviour.tests", f"name the labels {unknown}, prompt.verbalizers defines {list(labels)}"
    if section.field is not None and section.field not in fields:
        yield "behaviour.field", f"is {section.field!r}, ingest.columns.fields defines {fields}"
    elif section.field is None and len(fields) > 1 and (section.tests or section.pairs):
        yield "behaviour.field", f"is missing; say which of {fields} gets the texts of tests and pairs"
    others = sorted(set(fields) - {section.field or fields[0]})
    if (section.tests or section.pairs) and len(others) < len(fields) and sorted(section.context) != others:
        yield "behaviour.context", f"gives {sorted(section.context)}; give what the fields {others} hold in tests and pairs"
    for path, names, known in params.gate.behaviour.named(section):
        missing = [name for name in names if name not in known]
        if missing:
            yield f"gate.behaviour.{path}", f"names {missing}, behaviour.{path} defines {sorted(known)}"


SECTIONS: tuple[str, ...] = tuple(field.alias or name for name, field in TaskParams.model_fields.items())


def load(path: Path) -> dict[str, TaskParams]:
    """Read params.yaml and return every task, typed; raises ParamsError with all errors of all tasks together."""
    document = read_yaml(path)
    errors: list[str] = []
    defaults, tasks = _top_level(document, errors)
    typed: dict[str, TaskParams] = {}
    for name, sections in tasks.items():
        if not TASK_NAME.fullmatch(str(name)):
            errors.append(f"tasks.{name}: {TASK_NAME_RULE}")
        elif str(name).removesuffix(TEMPLATE_SUFFIX) in tasks and str(name).endswith(TEMPLATE_SUFFIX):
            errors.append(
                f"tasks.{name}: MLflow keeps the template of {str(name).removesuffix(TEMPLATE_SUFFIX)} under this name; choose another"
            )
        elif not isinstance(sections, Mapping):
            errors.append(f"tasks.{name}: expected a mapping of sections, found {sections!r}")
        else:
            _type_task(name, defaults, cast(Mapping[str, Any], sections), typed, errors)
    _typed_fleet(document, errors)
    distinct = list(dict.fromkeys(errors))  # a wrong default shows up in every task
    if distinct:
        raise listed(path, distinct)
    return typed


def load_fleet(path: Path) -> FleetParams | None:
    """Read the key `fleet` of params.yaml; None where it is absent. Raises ParamsError with all its errors together."""
    errors: list[str] = []
    fleet = _typed_fleet(read_yaml(path), errors)
    if errors:
        raise listed(path, errors)
    return fleet


def _typed_fleet(document: Mapping[str, Any], errors: list[str]) -> FleetParams | None:
    if FLEET not in document:
        return None
    try:
        return FleetParams.model_validate(document[FLEET])
    except ValidationError as error:
        errors.extend(describe_at(detail, FLEET) for detail in error.errors())
        return None


def load_tasks(path: Path, names: Sequence[str] | None = None) -> dict[str, TaskParams]:
    """Read params.yaml and return the tasks of these names, or all by name (None), in that order and each once; raises ParamsError naming those it does not have."""
    tasks = load(path)
    unknown = [name for name in names or () if name not in tasks]
    if unknown:
        raise ParamsError(f"{path} has no tasks {unknown}; it has: {', '.join(sorted(tasks))}. Correct the names.")
    return {name: tasks[name] for name in names or sorted(tasks)}


def load_task(path: Path, task: str) -> TaskParams:
    """Read params.yaml and return one task; raises ParamsError naming the known tasks when there is none of that name."""
    tasks = load(path)
    if task not in tasks:
        raise ParamsError(
            f"{path} has no task {task!r}; it has: {', '.join(sorted(tasks))}. Add a section tasks.{task} or correct the name."
        )
    return tasks[task]


def _top_level(document: Mapping[str, Any], errors: list[str]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    known = ("defaults", "tasks", FLEET)
    errors.extend(
        f"{key}: unknown key; the top level holds `defaults` and `tasks`, and may hold `{FLEET}`" for key in document if key not in known
    )
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
