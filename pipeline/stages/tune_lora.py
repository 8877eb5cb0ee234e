"""tune_lora: the LoRA baseline, trained as long as the soft prompt is; nothing but the reason where none is asked for."""

import shutil
from typing import Any

from pipeline.layout import Paths
from pipeline.lora_baseline import BUNDLE_FOLDER, LOG_FILE, RECORD_FILE
from pipeline.params import Lora, PlainInit, TaskParams, TrialsParams
from pipeline.records import replacing_folder, write_json


def run(*, params: TaskParams, inputs: Paths, outputs: Paths) -> dict[str, Any]:
    """Write the folder `lora`: its record, and where the params ask for a LoRA its bundle and training log. Else no model is loaded.

    Interruption, resuming and `torchrun` are those of the stage tune.
    """
    if not params.lora_baseline.enabled:
        record: dict[str, Any] = {"task": outputs.lora.name, "enabled": False, "reason": "lora_baseline.enabled is false"}
        with replacing_folder(outputs.lora) as folder:
            write_json(folder / RECORD_FILE, record)
        return record
    from pipeline.stages.tune import train_bundle

    params = with_lora(params)
    made = outputs.scratch / "made"
    files = Paths({"bundle": made / BUNDLE_FOLDER, "train_log": made / LOG_FILE}, outputs.scratch / "checkpoints")
    manifest, _ = train_bundle(params=params, inputs=inputs, outputs=files, task=outputs.lora.name, stage="tune_lora")
    if not manifest:
        return {}
    record = {"task": outputs.lora.name, "enabled": True, "reason": None}
    with replacing_folder(outputs.lora) as folder:
        for name in (BUNDLE_FOLDER, LOG_FILE):
            shutil.move(made / name, folder / name)
        write_json(folder / RECORD_FILE, record)
    shutil.rmtree(outputs.scratch)
    return record


def with_lora(params: TaskParams) -> TaskParams:
    """The params with LoRA as the method of `tune`: steps, batches, optimiser, schedule, evaluation and seeds stay, so that the training is as long.

    A search over learning rates, inits or lengths is the soft prompt's alone; LoRA has no virtual tokens, and its pass is not compiled.
    """
    lora, tune = params.lora_baseline, params.tune
    method = Lora(kind="lora", rank=lora.rank, alpha=lora.alpha, target_modules=lora.target_modules)
    trials = TrialsParams(seeds=tune.trials.seeds, halving=tune.trials.halving)
    unused = {"init": PlainInit(kind="random_uniform"), "num_virtual_tokens": 1, "compile": False}
    settings = tune.model_copy(update={"method": method, "learning_rate": lora.learning_rate, "trials": trials, **unused})
    return TaskParams.model_copy(params, update={"tune": settings})
