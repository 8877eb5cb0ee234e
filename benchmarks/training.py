"""Training speed and peak memory: the engine against PEFT's model in transformers' Trainer.

    python -m benchmarks.training --repetitions 3

For every data type, kind of text and number of virtual tokens, the arms take turns on batches of 16 that stand for their own epoch
(see epochs.py); the first step of a turn is a warm-up and is not counted. Peak memory is that of a step on the widest batch of the
arm's epoch, in a process of its own. Results: `benchmarks/results/training.json`, `.md` and `.png`.

The cells take hours on two cores. With `--keep` a call measures some of them and keeps what the results file has of the others, provided
that the machine and the libraries are the same; each row says with how many steps and on which commit it was measured.
"""

import argparse
import itertools
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.arms import ARMS, ENGINE, ENGINE_FULL, TRAINER, Arm, Run, Task, gradient_error, start_values
from benchmarks.drawing import Panel, goals_table, table, with_spread
from benchmarks.epochs import Batches, evenly_spaced, width
from benchmarks.measuring import goal, spread, take_turns
from benchmarks.memory import MemoryCase, peak_memory
from benchmarks.recording import add_options, describe_machine, write_results
from pipeline.engine.batching import Example
from pipeline.lineage import code_identity
from pipeline.records import read_json

if TYPE_CHECKING:
    from benchmarks.demo_task import Demo

TITLE = "Training: the engine against PEFT + Trainer"
TEXTS = ("tweets", "longer texts")
SPEED_GOALS = {20: 3.0, 100: 5.0}
MEMORY_GOAL = 0.5
GRADIENT_GOAL = 1e-5
MEBIBYTE = 2**20

Row = dict[str, Any]


def timed_batches(arm: Arm, examples: Sequence[Example], batch_size: int, steps: int) -> Batches:
    """A warm-up batch of middling width and `steps` batches that stand for the arm's epoch."""
    epoch = arm.epoch(examples, batch_size)
    return [*evenly_spaced(epoch, 1), *evenly_spaced(epoch, steps)]


def speed_rows(
    task: Task, examples: Sequence[Example], arms: dict[str, Arm], *, num_virtual_tokens: int, batch_size: int, steps: int, repetitions: int
) -> list[Row]:
    """Examples per second of each arm, with the tokens its steps had to read."""
    start = start_values(task.base, num_virtual_tokens)
    batches = {name: timed_batches(arm, examples, batch_size, steps) for name, arm in arms.items()}
    runs: dict[str, list[Run]] = take_turns(
        {name: partial(arm.train, task, batches[name], start) for name, arm in arms.items()}, repetitions
    )
    return [
        {
            "arm": name,
            "examples_per_second": spread([steps * batch_size / sum(run.seconds[1:]) for run in runs[name]]),
            "mean_length": sum(len(example.token_ids) for batch in batches[name][1:] for example in batch) / (steps * batch_size),
            "mean_padded_length": sum(width(batch) for batch in batches[name][1:]) / steps,
        }
        for name in arms
    ]


def memory_of(
    demo: "Demo", task: Task, examples: Sequence[Example], arm: str, *, num_virtual_tokens: int, dtype: str, batch_size: int
) -> float:
    """Peak MiB above the weights on the widest batch of the arm's epoch."""
    widest = max(ARMS[arm].epoch(examples, batch_size), key=width)
    case = MemoryCase(
        arm=arm,
        source=demo.source,
        dtype=dtype,
        head=task.head,
        verbalizers=task.verbalizers,
        num_virtual_tokens=num_virtual_tokens,
        batches=[widest] * 2,
    )
    return peak_memory(case) / MEBIBYTE


def gradient_rows(task: Task, examples: Sequence[Example], virtual_tokens: Sequence[int], batch_size: int) -> list[Row]:
    """The engine's gradient against PEFT's on one batch, for each number of virtual tokens and both methods."""
    batch = evenly_spaced(ARMS[TRAINER].epoch(examples, batch_size), 1)[0]
    return [
        {"num_virtual_tokens": count, "method": method, **gradient_error(task, batch, start_values(task.base, count), method)}
        for count in virtual_tokens
        for method in ("prompt_tuning", "prefix_tuning")
    ]


def goals(rows: Sequence[Row], gradients: Sequence[Row]) -> list[dict[str, Any]]:
    """The figures against the goals; the goals of speed and memory were set for float32."""
    found: list[dict[str, Any]] = []
    for cell in cells(rows):
        where = cell_name(cell[0])
        by_arm = {row["arm"]: row for row in cell}
        if not {TRAINER, ENGINE} <= set(by_arm):
            continue
        count = cell[0]["num_virtual_tokens"]
        for arm in (ENGINE, ENGINE_FULL):
            if arm in by_arm:
                ratio = by_arm[arm]["examples_per_second"]["median"] / by_arm[TRAINER]["examples_per_second"]["median"]
                found.append(goal(f"speed of {arm} over {TRAINER}, {where}", ratio, SPEED_GOALS.get(count, 1.0)))
        if "peak_mebibytes" in by_arm[ENGINE]:
            ratio = by_arm[ENGINE]["peak_mebibytes"]["median"] / by_arm[TRAINER]["peak_mebibytes"]["median"]
            found.append(goal(f"memory of {ENGINE} over {TRAINER}, {where}", ratio, MEMORY_GOAL, at_least=False))
    for row in gradients:
        name = f"gradient's relative error, {row['method']}, P={row['num_virtual_tokens']}, float32"
        found.append(goal(name, row["relative_error"], GRADIENT_GOAL, at_least=False))
    return found


def cells(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows that were measured in the same turns."""
    return [list(group) for _, group in itertools.groupby(rows, key=cell_name)]


def cell_name(row: Row) -> str:
    """What the rows of a cell share."""
    return f"{row['texts']}, P={row['num_virtual_tokens']}, {row['dtype']}"


def tables(rows: Sequence[Row], found_goals: Sequence[dict[str, Any]]) -> list[str]:
    """The markdown tables of these rows."""
    lines = [
        [
            row["texts"],
            str(row["num_virtual_tokens"]),
            row["dtype"],
            row["arm"],
            with_spread(row["examples_per_second"]),
            with_spread(row["peak_mebibytes"]) if "peak_mebibytes" in row else "",
            f"{row['mean_length']:.0f} / {row['mean_padded_length']:.0f}",
        ]
        for row in rows
    ]
    header = ["texts", "P", "dtype", "arm", "examples/s", "peak MiB above the weights", "tokens of a text: mean / padded"]
    return [table(header, lines), "Median (smallest to largest).", goals_table(found_goals)]


def panels(rows: Sequence[Row]) -> list[Panel]:
    """A line of panels for each data type and kind of text: speed for every P, then memory for every P."""
    ordered: list[Panel] = []
    for _, same_line in itertools.groupby(cells(rows), key=lambda cell: (cell[0]["dtype"], cell[0]["texts"])):
        line = list(same_line)
        ordered += [_panel(cell, "examples_per_second", "examples/s") for cell in line]
        ordered += [_panel(cell, "peak_mebibytes", "peak MiB above the weights") for cell in line if "peak_mebibytes" in cell[0]]
    return ordered


def _panel(cell: list[Row], figure: str, unit: str) -> Panel:
    return Panel(cell_name(cell[0]), unit, {row["arm"]: row[figure] for row in cell})


def run(options: argparse.Namespace) -> None:
    """Measure cell by cell, and write what there is after each, so that an interrupted run keeps it."""
    from benchmarks.demo_task import load_demo  # needs pandas and the params, which a bare machine has not

    demo = load_demo(options)
    arms = {name: ARMS[name] for name in options.arms}
    rows, gradients = kept(options.output / "training.json", options) if options.keep else ([], [])
    measured_as = {"steps": options.steps, "repetitions": options.repetitions, "commit": code_identity(Path(__file__).parent)["commit"]}
    for dtype in options.dtypes:
        base = demo.load(dtype)
        task = demo.task(base)
        texts = {"tweets": demo.tweets(base, "train"), "longer texts": demo.longer_texts(base)}
        if dtype == "float32":
            new = [count for count in options.virtual_tokens if count not in [row["num_virtual_tokens"] for row in gradients]]
            gradients += gradient_rows(task, texts["tweets"], new, options.batch_size)
        for kind, count in itertools.product(options.texts, options.virtual_tokens):
            sizes = {"num_virtual_tokens": count, "batch_size": options.batch_size}
            found = speed_rows(task, texts[kind], arms, **sizes, steps=options.steps, repetitions=options.repetitions)
            cell = [{"texts": kind, "num_virtual_tokens": count, "dtype": dtype, **row, **measured_as} for row in found]
            rows = sorted([*rows, *cell], key=_place)
            _write(options, rows, gradients)  # what memory needs may not be there, and the times are kept then
            if options.memory_repetitions:
                measure = {name: partial(memory_of, demo, task, texts[kind], name, dtype=dtype, **sizes) for name in arms}
                for name, peaks in take_turns(measure, options.memory_repetitions).items():
                    next(row for row in cell if row["arm"] == name)["peak_mebibytes"] = spread(peaks)
                _write(options, rows, gradients)
            print(tables(cell, [])[0], flush=True)


def kept(path: Path, options: argparse.Namespace) -> tuple[list[Row], list[Row]]:
    """The rows of cells that `options` do not measure, and the gradients, of an earlier call on this machine with these libraries."""
    before = read_json(path)
    if before["machine"] != describe_machine(torch.device("cpu")):
        raise SystemExit(f"{path} was measured on another machine or with other libraries, so its rows do not belong beside new ones.")
    wanted = {
        cell_name({"texts": texts, "num_virtual_tokens": count, "dtype": dtype})
        for texts, count, dtype in itertools.product(options.texts, options.virtual_tokens, options.dtypes)
    }
    return [row for row in before["rows"] if cell_name(row) not in wanted], before["gradients"]


def _place(row: Row) -> tuple[bool, int, int]:
    """Where the row's cell stands in the tables; rows of one cell keep their order."""
    return row["dtype"] != "float32", TEXTS.index(row["texts"]), row["num_virtual_tokens"]


def _write(options: argparse.Namespace, rows: list[Row], gradients: list[Row]) -> None:
    found_goals = goals(rows, gradients)
    columns = 2 * len({row["num_virtual_tokens"] for row in rows})
    write_results(
        "training",
        title=TITLE,
        device=torch.device("cpu"),
        settings={name: vars(options)[name] for name in ("memory_repetitions", "batch_size", "rows")},
        found={"rows": rows, "gradients": gradients, "goals": found_goals},
        tables=tables(rows, found_goals),
        panels=panels(rows),
        columns=columns,
        folder=options.output,
    )


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, repetitions=3)
    parser.add_argument("--memory-repetitions", type=int, default=1, help="processes per arm that measure memory (0: none)")
    parser.add_argument("--steps", type=int, default=8, help="timed steps of each turn")
    parser.add_argument("--keep", action="store_true", help="keep the cells of the results file that this call does not measure")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--virtual-tokens", type=int, nargs="+", default=[20, 100])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--texts", nargs="+", choices=TEXTS, default=list(TEXTS))
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    return parser


def main() -> None:
    """Run from the command line."""
    run(make_parser().parse_args())


if __name__ == "__main__":
    main()
