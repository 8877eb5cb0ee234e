"""What the tables of docs/methods.md refuse, as errors of params.yaml, before anything is read, downloaded or loaded.

Params are typed without looking at a base model; this is the one step more: its files say which architecture it has, and some params
do not go together with that. Where they do not say (a model that is not there yet, a family that only transformers can tell), the
same rules stop the stage that loads the model.
"""

from collections.abc import Iterator
from pathlib import Path

from pipeline.engine.stated_architecture import stated_architecture
from pipeline.engine.support import Architecture, Option, refusal_of
from pipeline.params import PromptParams, TaskParams, TunedPromptInit, load_task
from pipeline.params_file import listed, read_yaml, side_of


def load_runnable_task(path: Path, task: str) -> TaskParams:
    """One task of params.yaml whose method, base model and options go together.

    Raises ParamsError, as load_task does, and with the dotted path of each param that the base model's architecture refuses.
    """
    params = load_task(path, task)
    architecture = stated_architecture(params.base_model.source.model_dump(), root=path.parent)
    problems = list(refused(params, architecture)) if architecture else []
    if problems:
        document = read_yaml(path)
        defaults, sections = document["defaults"], document["tasks"][task]
        raise listed(path, (f"{side_of(tuple(key.split('.')), task, defaults, sections)}.{key}: {why}" for key, why in problems))
    return params


def refused(params: TaskParams, architecture: Architecture) -> Iterator[tuple[str, str]]:
    """(dotted path, problem) of each param that cannot be used with a base model of this architecture."""
    for key, option in _options(params):
        why = refusal_of(option, params.tune.method.kind, architecture)
        if why:
            yield key, f"{why}; docs/methods.md has the tables"
    why = hard_prompt_problem(params.prompt, architecture)
    if why:
        yield "prompt.hard_prompts", why
    if architecture != "encoder":
        return
    for index, threshold in enumerate(params.gate.change_thresholds):
        if threshold.baseline in ("hard_prompt", "zero_shot", "few_shot"):
            yield (
                f"gate.change_thresholds.{index}.baseline",
                f"an encoder has no {threshold.baseline} to compare with; use majority_class",
            )
    if params.base_model.dtype in ("bfloat16", "float16"):
        yield "base_model.dtype", f"an encoder's head is trained in the model's own dtype, {params.base_model.dtype}; use float32 or auto"


def hard_prompt_problem(prompt: PromptParams, architecture: Architecture) -> str | None:
    """What is wrong with the list of hard prompts for this architecture, if anything: it says whether there is such a baseline."""
    if architecture == "encoder" and prompt.hard_prompts:
        return f"an encoder cannot answer a hard prompt, found {len(prompt.hard_prompts)}; write []"
    if architecture != "encoder" and not prompt.hard_prompts:
        return "the tuned prompt is compared with the best hard prompt, found none; list at least one, such as the template"
    return None


def _options(params: TaskParams) -> Iterator[tuple[str, Option]]:
    """(dotted path, option) of what the params ask of the method."""
    tune = params.tune
    if params.prompt.free_text:
        yield "ingest.columns.target", "generation"
    if tune.gradient_checkpointing:
        yield "tune.gradient_checkpointing", "gradient checkpointing"
    if tune.compile:
        yield "tune.compile", "torch.compile"
    starts = {f"tune.trials.inits.{index}": init for index, init in enumerate(tune.trials.inits)} or {"tune.init": tune.init}
    for key, init in starts.items():
        if isinstance(init, TunedPromptInit):
            yield key, "a tuned prompt as start"
