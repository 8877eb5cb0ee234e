"""tune: train the soft prompt and write the tuned prompt bundle."""

from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.engine.base_model import BaseModel, load_base_model
from pipeline.engine.batching import Example
from pipeline.engine.hardware import describe_hardware
from pipeline.engine.shared_prefix import check_agreement
from pipeline.engine.soft_prompt import initial_soft_prompt, save_soft_prompt, tensor_sha256
from pipeline.engine.template import Template, compile_template, compile_verbalizers
from pipeline.engine.training import Record, TrainingResult, TrainingSettings, train_soft_prompt
from pipeline.errors import StageInputError, TemplateError
from pipeline.layout import Paths
from pipeline.lineage import code_identity, library_versions
from pipeline.manifest import write_manifest
from pipeline.params import TaskParams
from pipeline.progress import Progress, announce
from pipeline.records import read_parquet, replacing_folder, sha256_file, sha256_json, write_json, write_jsonl

LIBRARIES = ("torch", "transformers", "peft", "safetensors", "tokenizers", "numpy")
SETTINGS = (
    "learning_rate",
    "weight_decay",
    "warmup_ratio",
    "schedule",
    "maximum_gradient_norm",
    "batch_size",
    "maximum_steps",
    "evaluate_every",
    "early_stopping_patience",
    "metric",
    "seed",
)


def run(*, params: TaskParams, inputs: Paths, outputs: Paths) -> dict[str, Any]:
    """Train on `train`, keep the best soft prompt by the metric on `validation`, write `bundle` and `train_log`."""
    tune = params.tune
    base = load_base_model(
        source=params.base_model.source.model_dump(), dtype=params.base_model.dtype, attention=params.base_model.attention, say=announce
    )
    check_agreement(base)
    template = compile_template(
        tokenizer=base.tokenizer, template=params.prompt.template, maximum_field_tokens=params.prompt.maximum_field_tokens
    )
    train = labelled_examples(inputs.train, template, params)
    validation = labelled_examples(inputs.validation, template, params, at_most=tune.validation_rows)
    check_context(base, template, [*train, *validation], tune.num_virtual_tokens)
    log: list[Record] = []
    with Progress("tune", tune.maximum_steps, "step") as progress:

        def on_record(record: Record) -> None:
            log.append(record)
            if record["event"] == "step":
                progress.advance(note=f"loss {record['loss']:.3f}")
            else:
                progress.say(f"  step {record['step']}: validation accuracy {record['accuracy']:.3f}, macro F1 {record['macro_f1']:.3f}")

        result = train_soft_prompt(
            base=base,
            soft_prompt=initial_soft_prompt(base=base, num_virtual_tokens=tune.num_virtual_tokens, init_text=tune.init_text),
            head=template.head,
            verbalizers=compile_verbalizers(tokenizer=base.tokenizer, verbalizers=params.prompt.verbalizers),
            train=train,
            validation=validation,
            settings=TrainingSettings(**{name: getattr(tune, name) for name in SETTINGS}),
            on_record=on_record,
        )
    write_jsonl(outputs.train_log, log)
    return _write_bundle(params, inputs, outputs.bundle, base, result)


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


def rows_of(frame: pd.DataFrame, template: Template) -> list[dict[str, str]]:
    """The template's fields of each row."""
    return [dict(zip(template.fields, values, strict=True)) for values in zip(*(frame[name] for name in template.fields), strict=True)]


def check_context(base: BaseModel, template: Template, examples: list[Example], num_virtual_tokens: int) -> None:
    """Raise TemplateError when the longest example with its prefix does not fit the base model's context."""
    longest = max((len(example.token_ids) for example in examples), default=0)
    needed = num_virtual_tokens + len(template.head) + longest
    if needed > base.context_length:
        raise TemplateError(
            f"The longest example needs {needed} tokens with its prefix, {base.source['id']} attends to {base.context_length}. "
            "Lower prompt.maximum_field_tokens or tune.num_virtual_tokens."
        )


def _write_bundle(params: TaskParams, inputs: Paths, bundle: Path, base: BaseModel, result: TrainingResult) -> dict[str, Any]:
    tune, prompt = params.tune, params.prompt
    lineage = {
        "soft_prompt": {"sha256": tensor_sha256(result.soft_prompt), "shape": list(result.soft_prompt.shape), "dtype": "float32"},
        "base_model": base.identity(),
        "task": bundle.name,
        "fields": list(params.ingest.columns.fields),
        "labels": list(prompt.labels),
        "training": {
            "method": tune.method,
            "seed": tune.seed,
            "steps": result.steps,
            "stopped_early": result.stopped_early,
            "best_step": result.best_step,
            "metric": tune.metric,
            "best_metric": getattr(result.best, tune.metric),
        },
        "data": {"train_sha256": sha256_file(inputs.train), "validation_sha256": sha256_file(inputs.validation)},
        "params_sha256": sha256_json({name: getattr(params, name).model_dump(mode="json") for name in ("tune", "prompt", "base_model")}),
        "code": code_identity(Path.cwd()),
        "libraries": library_versions(LIBRARIES),
        "hardware": describe_hardware(base.device),
    }
    with replacing_folder(bundle) as folder:
        save_soft_prompt(
            folder,
            soft_prompt=result.soft_prompt,
            base_model_id=base.source["id"],
            revision=base.source.get("revision"),
            init_text=tune.init_text,
        )
        (folder / "README.md").unlink(missing_ok=True)
        write_json(folder / "template.json", {"template": prompt.template, "maximum_field_tokens": prompt.maximum_field_tokens})
        write_json(folder / "verbalizers.json", prompt.verbalizers)
        return write_manifest(folder, lineage)
