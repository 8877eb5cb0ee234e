"""tune: train the soft prompt and write the tuned prompt bundle."""

import math
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline import engine
from pipeline.engine.base_model import BaseModel
from pipeline.engine.batching import Example, training_order_sha256
from pipeline.engine.distributed import launch, launched, process_count, process_group
from pipeline.engine.hardware import describe_hardware, gpu_usage
from pipeline.engine.learners import SharedPrefixLearner
from pipeline.engine.peft_adapter import save_peft_module
from pipeline.engine.peft_learner import PeftLearner
from pipeline.engine.predicting import GENERATION_FILE
from pipeline.engine.ranking import values_sha256
from pipeline.engine.shared_prefix import key_value_shape
from pipeline.engine.soft_prompt import save_soft_prompt, state_sha256, tensor_sha256
from pipeline.engine.template import Template, Verbalizers, compile_verbalizers
from pipeline.engine.training import Record, TrainingResult, train
from pipeline.engine.virtual_tokens import virtual_tokens
from pipeline.errors import TemplateError, TrainingError
from pipeline.examples import labelled_examples, target_examples, task_base_model, task_template, writing_settings
from pipeline.interruption import ERRORS_VARIABLE, reported_error, stop_requested
from pipeline.layout import Paths
from pipeline.lineage import code_identity, library_versions
from pipeline.manifest import verify_bundle, write_manifest
from pipeline.params import TaskParams
from pipeline.progress import Progress
from pipeline.records import read_parquet, replacing_folder, sha256_file, sha256_json, write_json, write_jsonl
from pipeline.system_metrics import SystemMetrics
from pipeline.trials import Plan, make_learner, training_settings, trial_plans, trial_settings

STAGE = "tune"
LIBRARIES = ("torch", "transformers", "peft", "safetensors", "tokenizers", "numpy")


def run(*, params: TaskParams, inputs: Paths, outputs: Paths) -> dict[str, Any]:
    """Train on `train`, keep the best soft prompt by the metric on `validation`, write `bundle`, `train_log` and
    `virtual_tokens`, what words the trained rows lie near.

    A run that was interrupted goes on from its checkpoint. Under `torchrun` the processes share out every batch and the first one
    writes; the others return nothing. With `execution.processes` above 1 this process starts them so, and waits.
    Raises TrainingInterrupted when the process is asked to end.
    """
    if params.execution.processes > 1 and not launched():
        return _run_in_processes(params.execution.processes, outputs)
    manifest, near = train_bundle(params=params, inputs=inputs, outputs=outputs, task=outputs.bundle.name, stage=STAGE)
    if manifest:
        write_json(outputs.virtual_tokens, {"task": outputs.bundle.name, **near})
    return manifest


def train_bundle(*, params: TaskParams, inputs: Paths, outputs: Paths, task: str, stage: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train what `params.tune` says and write it as `bundle` of `task`, with its `train_log`.

    Returns the manifest and what words its virtual tokens lie near; both are empty where another process writes.
    """
    tune = params.tune
    base = task_base_model(params)
    template = task_template(params, base)
    examples, validation, verbalizers = _examples(params, inputs, base, template)
    plans = trial_plans(tune)
    check_context(base, template, [*examples, *validation], max(plan.num_virtual_tokens for plan in plans), _room_to_write(params))
    learner = make_learner(params, base, template, verbalizers, plans, examples)
    initial = _initial_sha256(learner)
    started_from = [learner.soft_prompt(trial) for trial in range(len(plans))]
    key = _checkpoint_key(params, inputs, base)
    log: list[Record] = []
    metrics: dict[int, str] = {}
    machine = SystemMetrics(lambda: gpu_usage(base.device))
    with process_group(base.device) as processes, stop_requested() as stop, Progress(stage, tune.maximum_steps, "step") as progress:

        def on_record(record: Record) -> None:
            log.append(record)
            if record["event"] == "evaluation" or machine.due():
                log.append({"event": "system", "step": record["step"], **machine.sample()})
            if processes.first:
                _show(progress, record, len(plans), metrics)

        result = train(
            learner=processes.learner(learner),
            trials=[trial_settings(plan, tune) for plan in plans],
            train=examples,
            validation=validation,
            settings=training_settings(tune),
            on_record=on_record,
            checkpoint=processes.checkpoint(
                path=outputs.scratch / f"{key[:16]}.safetensors", key=key, every=tune.checkpoint_every, say=progress.say
            ),
            stop=processes.stop(stop),
        )
        if not processes.first:
            return {}, {}
    write_jsonl(outputs.train_log, log)
    best = plans[result.best_trial]
    order = training_order_sha256(examples, batch_size=tune.batch_size, seed=best.seed, batches=result.steps)
    lineage: dict[str, Any] = _lineage(params, inputs, task, base, result, best) | {"row_order_sha256": order}
    lineage["training"] |= {"initial_sha256": initial[result.best_trial], "processes": process_count()}
    near = virtual_tokens(base, learner.soft_prompt(result.best_trial), started_from[result.best_trial])
    manifest = _write_bundle(params, outputs.bundle, learner, result.best_trial, best, lineage)
    shutil.rmtree(outputs.scratch, ignore_errors=True)  # this run's checkpoint, and those of runs with other params that never ended
    return manifest, {"trial": result.best_trial, **near}


def _run_in_processes(count: int, outputs: Paths) -> dict[str, Any]:
    """Run this stage again in `count` processes; raises what the first of them that failed has written down."""
    with tempfile.TemporaryDirectory() as errors, stop_requested() as stop:
        code = launch(count, ["pipeline", STAGE, "--task", outputs.bundle.name], environment={ERRORS_VARIABLE: errors}, stop=stop)
        if code != 0:
            raise reported_error(
                Path(errors),
                TrainingError(f"one of {count} processes ended with exit code {code} and gave no reason. What they printed is above."),
            )
    return verify_bundle(outputs.bundle)


def _examples(
    params: TaskParams, inputs: Paths, base: BaseModel, template: Template
) -> tuple[Sequence[Example], Sequence[Example], Verbalizers | None]:
    """Training and validation examples, and the verbalizers; a task with free-text targets has none."""
    rows = params.tune.validation_rows
    if params.prompt.free_text:
        return (
            target_examples(inputs.train, base, template, params),
            target_examples(inputs.validation, base, template, params, at_most=rows),
            None,
        )
    verbalizers = compile_verbalizers(tokenizer=base.tokenizer, verbalizers=params.prompt.verbalizers)
    validation = labelled_examples(inputs.validation, template, params, at_most=rows)
    return labelled_examples(inputs.train, template, params), validation, verbalizers


def _room_to_write(params: TaskParams) -> int:
    """Tokens that an answer may take behind the longest prompt when the test split is decoded."""
    return params.prompt.generation_settings.maximum_new_tokens if params.prompt.free_text else 0


def check_context(base: BaseModel, template: Template, examples: Sequence[Example], num_virtual_tokens: int, answer: int = 0) -> None:
    """Raise TemplateError when the longest example with its prefix, and an answer of so many tokens, does not fit the base model's context."""
    longest = max((len(example.token_ids) for example in examples), default=0)
    needed = num_virtual_tokens + len(template.head) + longest + answer
    if needed > base.context_length:
        raise TemplateError(
            f"The longest example needs {needed} tokens with its prefix, {base.source['id']} attends to {base.context_length}. "
            "Lower prompt.maximum_field_tokens or tune.num_virtual_tokens."
        )


def _checkpoint_key(params: TaskParams, inputs: Paths, base: BaseModel) -> str:
    """Hash of all that a checkpoint must share with this run for the run to go on from it, bit for bit."""
    return sha256_json(
        {
            **{name: getattr(params, name).model_dump(mode="json") for name in ("tune", "prompt", "base_model")},
            "data": [sha256_file(inputs.train), sha256_file(inputs.validation)],
            "base": base.identity(),
            "engine": {path.name: sha256_file(path) for path in sorted(Path(engine.__file__).parent.glob("*.py"))},
            "libraries": library_versions(LIBRARIES),
            "hardware": describe_hardware(base.device),
            "processes": process_count(),
        }
    )


def _initial_sha256(learner: SharedPrefixLearner | PeftLearner) -> list[str]:
    """What each trial starts from, before its first step: of a soft prompt the sha256 of its values, as the manifest has the tuned one's."""
    if isinstance(learner, SharedPrefixLearner):
        return [tensor_sha256(learner.soft_prompt(trial).values) for trial in range(len(learner.modules))]
    return [state_sha256(module.state_dict()) for module in learner.modules]


def _show(progress: Progress, record: Record, trials: int, metrics: dict[int, str]) -> None:
    """A step moves the bar once, however many trials it served; `metrics` keeps what each trial's last evaluation said."""
    who = f"trial {record['trial']}: " if trials > 1 else ""
    if record["event"] == "step":
        figures = [f"{who}loss {record['loss']:.3f}", metrics.get(record["trial"], ""), f"{record['examples_per_second']:.3g} examples/s"]
        progress.advance(units=int(record["trial"] == 0 or trials == 1), note=", ".join(filter(None, figures)))
    elif record["event"] == "evaluation":
        shown = {"accuracy": "accuracy", "macro_f1": "macro F1", "token_accuracy": "token accuracy", "exact_match": "exact match"}
        metrics[record["trial"]] = "validation " + ", ".join(f"{said} {record[name]:.3f}" for name, said in shown.items() if name in record)
        progress.say(f"  step {record['step']}: {who}{metrics[record['trial']]}")
    else:
        progress.say(f"  step {record['step']}: {who}{record['kind']}. {record['advice']}")


def _lineage(params: TaskParams, inputs: Paths, task: str, base: BaseModel, result: TrainingResult, best: Plan) -> dict[str, Any]:
    tune = params.tune
    return {
        "base_model": base.identity(),
        "task": task,
        "fields": list(params.ingest.columns.fields),
        "kind": "generation" if params.prompt.free_text else "classification",
        "labels": list(params.prompt.labels),
        "training": {
            "method": tune.method.kind,
            "seed": best.seed,
            "init": best.init.model_dump(),
            "steps": result.steps,
            "stopped_early": result.stopped_early,
            "best_step": result.best_step,
            "metric": tune.metric,
            "best_metric": result.best.metrics[tune.metric],
            "trial": result.best_trial,
            "trials": _trials(result, tune.metric),
            "configurations": {name: _without_nan(spread) for name, spread in result.spread(tune.metric).items()},
        },
        "data": {
            "train_sha256": sha256_file(inputs.train),
            "validation_sha256": sha256_file(inputs.validation),
            "ids_sha256": _ids_sha256(inputs),
        },
        "params_sha256": sha256_json({name: getattr(params, name).model_dump(mode="json") for name in ("tune", "prompt", "base_model")}),
        "code": code_identity(Path.cwd()),
        "libraries": library_versions(LIBRARIES),
        "hardware": describe_hardware(base.device),
    }


def _ids_sha256(inputs: Paths) -> str:
    """Hash of which row ids are in `train` and which in `validation`, whatever their order."""
    return sha256_json(
        {
            "train": sorted(read_parquet(inputs.train, ["row_id"])["row_id"]),
            "validation": sorted(read_parquet(inputs.validation, ["row_id"])["row_id"]),
        }
    )


def _trials(result: TrainingResult, metric: str) -> list[dict[str, Any]]:
    """What became of each trial; `best_metric` is null for one that diverged before its first evaluation."""
    return [
        {
            "configuration": trial.settings.name,
            "seed": trial.settings.seed,
            "best_step": trial.best_step,
            "best_metric": None if trial.best is None else trial.best.metrics[metric],
            "ended": trial.ended,
        }
        for trial in result.trials
    ]


def _without_nan(figures: dict[str, float]) -> dict[str, float | None]:
    """JSON has no NaN: the standard deviation of a single seed is null."""
    return {name: None if math.isnan(value) else value for name, value in figures.items()}


def _write_bundle(
    params: TaskParams, bundle: Path, learner: SharedPrefixLearner | PeftLearner, trial: int, best: Plan, lineage: dict[str, Any]
) -> dict[str, Any]:
    prompt = params.prompt
    with replacing_folder(bundle) as folder:
        identity = _save(folder, learner, trial, getattr(best.init, "text", ""))
        (folder / "README.md").unlink(missing_ok=True)
        template = {"template": prompt.template, "maximum_field_tokens": prompt.maximum_field_tokens}
        write_json(folder / "template.json", {**template, "length_normalisation": prompt.length_normalisation})
        write_json(folder / "verbalizers.json", prompt.verbalizers)
        if prompt.free_text:
            write_json(folder / GENERATION_FILE, asdict(writing_settings(params)))
        return write_manifest(folder, {"soft_prompt": identity, **lineage})


def _save(folder: Path, learner: SharedPrefixLearner | PeftLearner, trial: int, init_text: str) -> dict[str, Any]:
    """Write the trial in PEFT's format; returns what the manifest says of it. `shape` of an adapter is its number of values."""
    base = learner.base
    if isinstance(learner, PeftLearner):
        save_peft_module(folder, module=learner.modules[trial], base=base)
        through, shape = "PEFT", [sum(value.numel() for value in learner.modules[trial].state_dict().values())]
    else:
        soft_prompt = learner.soft_prompt(trial)
        save_soft_prompt(
            folder,
            soft_prompt=soft_prompt,
            base_model_id=base.source["id"],
            revision=base.source.get("revision"),
            init_text=init_text,
            key_value_shape=key_value_shape(base) if soft_prompt.kind == "key_values" else None,
        )
        through, shape = "shared prefix", list(soft_prompt.values.shape)
    return {"sha256": values_sha256(folder, through), "shape": shape, "dtype": "float32", "through": through}
