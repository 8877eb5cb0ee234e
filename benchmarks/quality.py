"""Quality at equal steps: the engine with the demo's settings against PEFT + Trainer over its initialisations and learning rates.

    python -m benchmarks.quality --seeds 0 --steps 240
    python -m benchmarks.quality --seeds 0 --steps 240 --sides engine "PEFT's settings"

Both sides train with the demo's batch size for the same number of steps on the same tweets, in random order for Trainer, whose schedule and
optimiser are its defaults (AdamW, linear to 0). All soft prompts are judged alike: by rank classification on fixed rows of the
validation and test splits. The engine keeps its best step on validation, as it always does; PEFT + Trainer keeps the last, as it always does.
PEFT's best configuration is chosen by validation accuracy.

The side `PEFT's settings` is PEFT + Trainer's initialisation, loss over the whole vocabulary, order, optimiser, schedule and clipping in the engine's loop, whose gradients are
PEFT's: the same tuned prompt up to rounding (a test compares them step by step) in a fraction of the time, where Trainer's own loop would take a day.

Hours long: each run is appended to `benchmarks/results/quality_runs.jsonl` when it ends, and runs found there are not repeated. Results:
`benchmarks/results/quality.json`, `.md` and `.png`.
"""

import argparse
import itertools
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PromptTuningConfig, PromptTuningInit, get_peft_model
from transformers import set_seed

from benchmarks.arms import Task, engine_learner, peft_weight, run_engine, run_trainer
from benchmarks.demo_task import Demo, load_demo
from benchmarks.drawing import Panel, goals_table, table, with_spread
from benchmarks.epochs import Batches, random_epoch
from benchmarks.measuring import goal, spread
from benchmarks.recording import add_options, write_results
from pipeline.engine.batching import Example
from pipeline.engine.initialisation import Initialisation, initial_embeddings
from pipeline.engine.learners import SharedPrefixLearner
from pipeline.engine.methods import MethodSettings, build_method
from pipeline.engine.objectives import Classification
from pipeline.engine.scoring import classification_result, score_examples
from pipeline.engine.shared_prefix import encode_prefixes
from pipeline.engine.soft_prompt import SoftPrompt
from pipeline.engine.training import train
from pipeline.records import read_jsonl
from pipeline.trials import Plan, training_settings, trial_settings

TITLE = "Quality at equal steps: the engine against PEFT + Trainer"
ENGINE, PEFT, SETTINGS = "engine", "PEFT + Trainer", "PEFT's settings"
DEFAULT_INIT, DEFAULT_LEARNING_RATE = "RANDOM", 5e-5  # of PEFT and of TrainingArguments
INITS = ("RANDOM", "SAMPLE_VOCAB", "TEXT")
LEARNING_RATES = (DEFAULT_LEARNING_RATE, 1e-3, 5e-3, 1e-2, 3e-2)
GAIN_OVER_DEFAULTS = 0.10

Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """One run. `init` and `learning_rate` are words of their side."""

    side: str
    init: str
    learning_rate: float
    seed: int
    steps: int
    batch_size: int
    num_virtual_tokens: int
    dtype: str

    @property
    def name(self) -> str:
        """What it is called in tables: everything but the seed that differs within a side."""
        return f"{self.side}, {self.init}, {self.learning_rate:g}"


@dataclass(frozen=True)
class Data:
    """Training examples, and the fixed rows on which every soft prompt is judged."""

    train: list[Example]
    validation: list[Example]
    test: list[Example]


def configurations(options: argparse.Namespace, demo: Demo) -> list[Configuration]:
    """The runs in the order of their worth: the engine and PEFT's defaults first, seed by seed."""
    tune = demo.params.tune
    common = {
        "steps": options.steps or tune.maximum_steps,
        "batch_size": options.batch_size or tune.batch_size,
        "num_virtual_tokens": tune.num_virtual_tokens,
        "dtype": options.dtype,
    }
    pairs = list(itertools.product(options.inits, options.learning_rates))
    pairs.sort(key=lambda pair: pair != (DEFAULT_INIT, DEFAULT_LEARNING_RATE))
    listed: list[Configuration] = []
    for seed in options.seeds or range(options.repetitions):
        if ENGINE in options.sides:
            listed.append(Configuration(side=ENGINE, init=tune.init.kind, learning_rate=tune.learning_rate, seed=seed, **common))
        for side in (PEFT, SETTINGS):
            if side in options.sides:
                listed += [Configuration(side=side, init=init, learning_rate=rate, seed=seed, **common) for init, rate in pairs]
    return listed


def tune_with_engine(task: Task, demo: Demo, data: Data, wanted: Configuration) -> torch.Tensor:
    """The soft prompt [P, H] of the demo's own settings."""
    tune = demo.params.tune.model_copy(
        update={
            "batch_size": wanted.batch_size,
            "maximum_steps": wanted.steps,
            "evaluate_every": max(1, wanted.steps // 4),
            "early_stopping_patience": wanted.steps,
        }
    )
    embeddings = initial_embeddings(
        base=task.base,
        num_virtual_tokens=wanted.num_virtual_tokens,
        initialisation=Initialisation(kind=wanted.init, text=getattr(tune.init, "text", "")),
        seed=wanted.seed,
        verbalizers=task.verbalizers.token_ids,
        corpus=[example.token_ids for example in data.train],
    )
    learner = SharedPrefixLearner(
        base=task.base,
        head=task.head,
        objective=Classification(task.verbalizers),
        modules=[build_method(base=task.base, settings=MethodSettings(name="prompt_tuning"), embeddings=embeddings, seed=wanted.seed)],
    )
    trial = trial_settings(Plan(wanted.seed, wanted.learning_rate, tune.init, wanted.num_virtual_tokens), tune)
    train(
        learner=learner,
        trials=[replace(trial, name=wanted.name)],
        train=data.train,
        validation=data.validation,
        settings=training_settings(tune),
    )
    return learner.soft_prompt(0).values


def peft_start(task: Task, demo: Demo, wanted: Configuration) -> Any:
    """PEFT's model with its own initialisation under this seed."""
    set_seed(wanted.seed)
    text = getattr(demo.params.tune.init, "text", None)
    config = PromptTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=wanted.num_virtual_tokens,
        prompt_tuning_init=PromptTuningInit(wanted.init),
        prompt_tuning_init_text=text if wanted.init == "TEXT" else None,
        tokenizer_name_or_path=str(task.base.folder) if wanted.init == "TEXT" else None,
    )
    return get_peft_model(task.base.model, config)


def tune_with_peft(task: Task, demo: Demo, data: Data, wanted: Configuration) -> torch.Tensor:
    """The soft prompt [P, H] that PEFT + Trainer leaves after the same number of steps."""
    model = peft_start(task, demo, wanted)
    run_trainer(task, model, _batches(data.train, wanted), learning_rate=wanted.learning_rate, seed=wanted.seed)
    return peft_weight(model).detach().clone()


def tune_with_pefts_settings(task: Task, demo: Demo, data: Data, wanted: Configuration) -> torch.Tensor:
    """The same soft prompt [P, H] up to rounding, from the engine's loop."""
    start = peft_weight(peft_start(task, demo, wanted)).detach().clone().float()
    task.base.model.eval()
    learner = engine_learner(task, start, full_vocabulary=True)
    run_engine(learner, _batches(data.train, wanted), learning_rate=wanted.learning_rate)
    return learner.soft_prompt(0).values


TUNERS = {ENGINE: tune_with_engine, PEFT: tune_with_peft, SETTINGS: tune_with_pefts_settings}


def judge(task: Task, soft_prompt: torch.Tensor, examples: Sequence[Example]) -> dict[str, float]:
    """Accuracy and macro F1 (0 to 1, best 1) and mean cross-entropy (best 0) by rank classification."""
    with torch.no_grad():
        prefix = encode_prefixes(task.base, [SoftPrompt(soft_prompt.float())], task.head)
    scores = score_examples(base=task.base, prefix=prefix, examples=examples, verbalizers=task.verbalizers, batch_size=64)
    found = classification_result(scores, [example.label for example in examples])
    return {"accuracy": found.accuracy, "macro_f1": found.macro_f1, "loss": found.loss}


def run_one(task: Task, demo: Demo, data: Data, wanted: Configuration) -> Record:
    """Tune and judge."""
    tuned = TUNERS[wanted.side](task, demo, data, wanted)
    return {
        **asdict(wanted),
        "validation": judge(task, tuned, data.validation),
        "test": judge(task, tuned, data.test),
        "rows": {"train": len(data.train), "validation": len(data.validation), "test": len(data.test)},
    }


# --- results ----------------------------------------------------------------------------------------------------------


def summarise(runs: Sequence[Record]) -> list[Record]:
    """A line for each configuration over its seeds, best mean validation accuracy first within a side."""
    by_name: dict[str, list[Record]] = {}
    for run in runs:
        by_name.setdefault(f"{run['side']}, {run['init']}, {run['learning_rate']:g}", []).append(run)
    lines = [
        {
            "name": name,
            "side": found[0]["side"],
            "is_default": found[0]["init"] == DEFAULT_INIT and found[0]["learning_rate"] == DEFAULT_LEARNING_RATE,
            "seeds": [run["seed"] for run in found],
            **{
                f"{split}_{metric}": spread([run[split][metric] for run in found])
                for split in ("validation", "test")
                for metric in ("accuracy", "macro_f1")
            },
            "mean_validation_accuracy": statistics.fmean(run["validation"]["accuracy"] for run in found),
            "mean_test_accuracy": statistics.fmean(run["test"]["accuracy"] for run in found),
        }
        for name, found in by_name.items()
    ]
    return sorted(lines, key=lambda line: (line["side"] != ENGINE, -line["mean_validation_accuracy"]))


def goals(summary: Sequence[Record]) -> list[dict[str, Any]]:
    """Test accuracy against PEFT's best by validation, its best by test (which nobody could choose), and its defaults."""
    ours = next((line["mean_test_accuracy"] for line in summary if line["side"] == ENGINE), None)
    theirs = sorted((line for line in summary if line["side"] != ENGINE), key=lambda line: -line["mean_validation_accuracy"])
    if ours is None or not theirs:
        return []
    luckiest = max(theirs, key=lambda line: line["mean_test_accuracy"])
    found = [
        goal(f"test accuracy gained over PEFT's best by validation ({theirs[0]['name']})", ours - theirs[0]["mean_test_accuracy"], 0.0),
        goal(f"test accuracy gained over PEFT's best by test ({luckiest['name']})", ours - luckiest["mean_test_accuracy"], 0.0),
    ]
    found += [
        goal(f"test accuracy gained over PEFT's defaults ({line['name']})", ours - line["mean_test_accuracy"], GAIN_OVER_DEFAULTS)
        for line in theirs
        if line["is_default"]
    ]
    return found


def tables(summary: Sequence[Record], found_goals: Sequence[dict[str, Any]]) -> list[str]:
    """The markdown tables."""
    lines = [
        [
            line["name"],
            str(len(line["seeds"])),
            *(with_spread(line[key]) for key in ("validation_accuracy", "test_accuracy", "test_macro_f1")),
        ]
        for line in summary
    ]
    header = ["side, init, learning rate", "seeds", "validation accuracy", "test accuracy", "test macro F1"]
    return [table(header, lines), goals_table(found_goals)]


def run(options: argparse.Namespace) -> None:
    """Make the runs that are not there yet, and write the results after each."""
    demo = load_demo(options)
    base = demo.load(options.dtype)
    task = demo.task(base)
    data = Data(
        demo.tweets(base, "train"),
        demo.tweets(base, "validation", options.validation_rows),
        demo.tweets(base, "test", options.test_rows),
    )
    log = options.output / "quality_runs.jsonl"
    wanted = configurations(options, demo)
    for configuration in wanted:
        if asdict(configuration) not in [_configuration_of(run) for run in _runs(log)]:
            record = run_one(task, demo, data, configuration)
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(record) + "\n")
            print(configuration.name, "seed", configuration.seed, record["validation"], record["test"])
        write_summary(options, [run for run in _runs(log) if _configuration_of(run) in [asdict(one) for one in wanted]], base.device)


def write_summary(options: argparse.Namespace, runs: list[Record], device: torch.device) -> None:
    """Write what these runs say."""
    summary = summarise(runs)
    found_goals = goals(summary)
    panels = [
        Panel(f"{split} accuracy", "accuracy", {line["name"]: line[f"{split}_accuracy"] for line in summary})
        for split in ("validation", "test")
    ]
    write_results(
        "quality",
        title=TITLE,
        device=device,
        settings={name: runs[0][name] for name in ("steps", "batch_size", "num_virtual_tokens", "dtype", "rows")},
        found={"summary": summary, "runs": runs, "goals": found_goals},
        tables=tables(summary, found_goals),
        panels=panels,
        columns=2,
        folder=options.output,
    )


def _batches(examples: Sequence[Example], wanted: Configuration) -> Batches:
    """`steps` batches of Trainer's random order, epoch after epoch."""
    batches: Batches = []
    while len(batches) < wanted.steps:
        batches += random_epoch(examples, wanted.batch_size, seed=wanted.seed * 1000 + len(batches))
    return batches[: wanted.steps]


def _runs(log: Path) -> list[Record]:
    return read_jsonl(log) if log.is_file() else []


def _configuration_of(run: Record) -> Record:
    return {name: run[name] for name in Configuration.__dataclass_fields__}


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, repetitions=1)
    parser.add_argument("--sides", nargs="+", choices=list(TUNERS), default=[ENGINE, PEFT])
    parser.add_argument("--inits", nargs="+", choices=INITS, default=list(INITS))
    parser.add_argument("--learning-rates", type=float, nargs="+", default=list(LEARNING_RATES), help="of PEFT + Trainer")
    parser.add_argument("--seeds", type=int, nargs="+", help="of every configuration (default: as many as repetitions, from 0)")
    parser.add_argument("--steps", type=int, help="of every run (default: the demo's)")
    parser.add_argument("--batch-size", type=int, help="of every run (default: the demo's)")
    parser.add_argument("--validation-rows", type=int, default=400)
    parser.add_argument("--test-rows", type=int, default=1000)
    parser.add_argument("--dtype", default="bfloat16")
    return parser


def main() -> None:
    """Run from the command line."""
    run(make_parser().parse_args())


if __name__ == "__main__":
    main()
