"""Rows of a split as the engine's examples: the one place that joins tables, templates and label sets."""

from pathlib import Path

import pandas as pd

from pipeline.combinations import hard_prompt_problem
from pipeline.engine.base_model import BaseModel, load_base_model
from pipeline.engine.batching import Example
from pipeline.engine.generation import GenerationExample
from pipeline.engine.template import Template, compile_template
from pipeline.engine.writing import WritingSettings, generation_examples
from pipeline.errors import BaseModelError, StageInputError
from pipeline.params import TaskParams
from pipeline.progress import announce
from pipeline.records import read_parquet


def task_base_model(params: TaskParams) -> BaseModel:
    """The task's base model, loaded, with a head for the labels if it is an encoder; slow steps are announced. Raises BaseModelError."""
    section = params.base_model
    base = load_base_model(
        source=section.source.model_dump(),
        dtype=section.dtype,
        attention=section.attention,
        tf32=section.tf32,
        device_map=section.device_map,
        num_labels=len(params.prompt.labels),
        say=announce,
    )
    problem = hard_prompt_problem(params.prompt, base.architecture)
    if problem:
        raise BaseModelError(f"prompt.hard_prompts does not fit {base.source['id']}, an {base.architecture}: {problem}.")
    return base


def task_template(params: TaskParams, base: BaseModel, text: str | None = None) -> Template:
    """The task's hard prompt template, or another `text`, as tokens of the base model."""
    return compile_template(
        tokenizer=base.tokenizer,
        template=text or params.prompt.template,
        maximum_field_tokens=params.prompt.maximum_field_tokens,
        closed=base.architecture != "decoder",
    )


def labelled_examples(path: Path, template: Template, params: TaskParams, at_most: int | None = None) -> list[Example]:
    """The rows of a split as examples, in their order, or a sample of `at_most` of them.

    Raises StageInputError naming a row whose label is not in the set.
    """
    frame = read_parquet(path, ["row_id", "label", *template.fields])
    if at_most is not None:
        # Row ids are hashes of the content, so the smallest ones are a random sample, and nearly the same one when rows are added.
        # The first rows of the file would not do: sources are often sorted by label.
        frame = frame.sort_values("row_id").head(at_most)
    index = {label: position for position, label in enumerate(params.prompt.labels)}
    unknown = frame[~frame["label"].isin(list(index))]
    if len(unknown):
        row = unknown.iloc[0]
        raise StageInputError(
            f"{path}, row {row['row_id']}: the label {row['label']!r} is not one of {list(index)}. Run `dvc repro` from the validate stage."
        )
    return [Example(ids, index[label]) for ids, label in zip(template.encode(rows_of(frame, template)), frame["label"], strict=True)]


def writing_settings(params: TaskParams) -> WritingSettings:
    """How the task's answers are written, for the engine."""
    section = params.prompt.generation_settings
    return WritingSettings(
        maximum_new_tokens=section.maximum_new_tokens,
        separator=section.separator,
        stop=tuple(section.stop),
        num_beams=section.num_beams,
        length_penalty=section.length_penalty,
    )


def target_examples(
    path: Path, base: BaseModel, template: Template, params: TaskParams, at_most: int | None = None
) -> list[GenerationExample]:
    """The rows of a split with their targets, in their order, or the sample of `at_most` that labelled_examples would take."""
    frame = read_parquet(path, ["row_id", "target", *template.fields])
    if at_most is not None:
        frame = frame.sort_values("row_id").head(at_most)
    return generation_examples(base, template, rows_of(frame, template), frame["target"].tolist(), writing_settings(params))


def unlabelled_examples(frame: pd.DataFrame, template: Template) -> list[Example]:
    """Every row as an example without a label."""
    return [Example(ids, -1) for ids in template.encode(rows_of(frame, template))]


def rows_of(frame: pd.DataFrame, template: Template) -> list[dict[str, str]]:
    """The template's fields of each row."""
    return [dict(zip(template.fields, values, strict=True)) for values in zip(*(frame[name] for name in template.fields), strict=True)]
