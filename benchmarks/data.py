"""Speed and memory of the data stages, how they grow, and what Great Expectations costs.

    python -m benchmarks.data --sizes 10000 100000 1000000

Rows are put together from runs of words of the demo's tweets, so they have real words, real runs of characters and hardly a near-duplicate. Every
measurement is a process of its own, and its peak memory is all of that process's, libraries included. Split holds clustering and
the leakage check; near-duplicates is clustering alone. Results: `benchmarks/results/data.json`, `.md` and `.png`, written size by size.

A million rows take long. With `--keep` a call measures some sizes, or none (`--sizes --keep`: the tweets), and keeps what the results file has of the others, provided
that the machine and the libraries are the same; each row says on which commit it was measured.
"""

import argparse
import csv
import json
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from benchmarks.data_stage import TASK, stage_params
from benchmarks.drawing import Panel, goals_table, table, with_spread
from benchmarks.measuring import goal, spread
from benchmarks.recording import RESULTS, describe_machine, write_results
from pipeline.data.sources import read_source
from pipeline.layout import PARAMS_FILE, find_root
from pipeline.lineage import code_identity
from pipeline.records import read_json

TITLE = "Data stages: speed, memory, growth"
STEPS = ("ingest", "validate", "near_duplicates", "split")
RUN_OF_WORDS = 4
MEMORY_GOAL = 2.0  # GiB at a million rows
VALIDATE_GOAL = 20.0  # seconds for all tweets
GIBIBYTE = 2**30

Row = dict[str, Any]


def synthesise(path: Path, rows: int, *, seed: int = 0) -> None:
    """Write a CSV of `rows` texts as long as the demo's tweets, each of runs of words of several tweets, with random labels."""
    params = stage_params(path.parent)
    read = read_source(params.ingest.source, params.ingest.columns, root=path.parent).rows
    tweets = [text.split() for text in read["text"]]
    generator = random.Random(seed)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sentiment", "confidence", "text"])
        for _ in range(rows):
            length = len(generator.choice(tweets))
            words: list[str] = []
            while len(words) < length:
                tweet = generator.choice(tweets)
                start = generator.randrange(len(tweet))
                words += tweet[start : start + RUN_OF_WORDS]
            writer.writerow([generator.choice(params.prompt.labels), 1.0, " ".join(words[: max(length, RUN_OF_WORDS)])])


def measure(step: str, folder: Path) -> dict[str, Any]:
    """What a process of its own reports of one step, and `process_seconds` with its start and imports."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.data_stage", step, str(folder)]
    done = subprocess.run(command, cwd=find_root(Path(__file__).resolve().parent), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return {**json.loads(done.stdout.splitlines()[-1]), "process_seconds": time.perf_counter() - began}


def measure_size(size: int, repetitions: int) -> list[Row]:
    """A row for each step over `size` rows: rows/s of the step, and the peak memory of its process."""
    found: list[Row] = []
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / PARAMS_FILE).touch()  # what a stage takes for the root
        synthesise(folder / "rows.csv", size)
        for step in STEPS:
            runs = [measure(step, folder) for _ in range(repetitions)]
            found.append(
                {
                    "step": step,
                    "rows": size,
                    "seconds": spread([run["seconds"] for run in runs]),
                    "cpu_seconds": spread([run["cpu_seconds"] for run in runs]),
                    "rows_per_second": spread([size / run["seconds"] for run in runs]),
                    "peak_gibibytes": spread([run["peak_bytes"] / GIBIBYTE for run in runs]),
                    "commit": _commit(),
                }
            )
            print(
                f"{step:16} {size:>9,} rows {with_spread(found[-1]['seconds'])} s, {found[-1]['peak_gibibytes']['median']:.2f} GiB",
                flush=True,
            )
    return found


def kept(path: Path, sizes: Sequence[int]) -> tuple[list[Row], Row]:
    """The rows of other sizes than `sizes`, and the figures of the tweets, of an earlier call on this machine with these libraries."""
    before = read_json(path)
    if before["machine"] != describe_machine(torch.device("cpu")):
        raise SystemExit(f"{path} was measured on another machine or with other libraries, so its rows do not belong beside new ones.")
    return [row for row in before["rows"] if row["rows"] not in sizes], before["tweets"]


def _commit() -> str | None:
    return code_identity(Path(__file__).parent)["commit"]


def exponents(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Step -> how CPU seconds grow with rows (1 is linear, 2 quadratic): the least-squares slope of their logarithms over all sizes, and
    between the two largest, where starting up weighs least."""
    slopes: dict[str, dict[str, float]] = {}
    for step in dict.fromkeys(row["step"] for row in rows):
        own = sorted((row["rows"], row["cpu_seconds"]["median"]) for row in rows if row["step"] == step)
        if len(own) > 1:
            logs = np.log(own)
            slopes[step] = {name: float(np.polyfit(*part.T, deg=1)[0]) for name, part in (("all sizes", logs), ("two largest", logs[-2:]))}
    return slopes


def measure_tweets(repetitions: int) -> dict[str, Any]:
    """All tweets of the demo's source: the validate stage as a process, and its checks by Great Expectations and by pandas."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / PARAMS_FILE).touch()
        measure("ingest", folder)
        validate = [measure("validate", folder) for _ in range(repetitions)]
        judged = [measure("contract", folder) for _ in range(repetitions)]
    if not all(run["agree"] for run in judged):
        raise SystemExit("Great Expectations and pandas disagree on a check of the raw rows; the comparison would be of different work.")
    return {
        "commit": _commit(),
        "rows": judged[0]["rows"],
        "validate_process_seconds": spread([run["process_seconds"] for run in validate]),
        "validate_cpu_seconds": spread([run["cpu_seconds"] for run in validate]),
        "validate_seconds": spread([run["seconds"] for run in validate]),
        "checks": judged[0]["checks"],
        **{key: spread([run[key] for run in judged]) for key in ("great_expectations_seconds", "import_seconds", "pandas_seconds")},
    }


def goals(rows: Sequence[Row], tweets: dict[str, Any]) -> list[dict[str, Any]]:
    """The goals, reached or not; those of a million rows only where a million rows were measured."""
    found = [
        goal(f"{row['step']} of a million rows: peak memory, GiB", row["peak_gibibytes"]["median"], MEMORY_GOAL, at_least=False)
        for row in rows
        if row["rows"] == 1_000_000
    ]
    seconds = tweets["validate_process_seconds"]["median"]
    return [*found, goal("validate of all tweets, with the process's start, seconds", seconds, VALIDATE_GOAL, at_least=False)]


def tables(
    rows: Sequence[Row], slopes: dict[str, dict[str, float]], tweets: dict[str, Any], reached: Sequence[dict[str, Any]]
) -> list[str]:
    """The results as markdown."""
    header = ["step", "rows", "rows/s", "seconds", "CPU seconds", "peak GiB"]
    lines = [
        [
            row["step"],
            f"{row['rows']:,}",
            f"{row['rows_per_second']['median']:,.0f}",
            with_spread(row["seconds"]),
            with_spread(row["cpu_seconds"]),
            f"{row['peak_gibibytes']['median']:.2f}",
        ]
        for row in rows
    ]
    growth = [[step, *(f"{slope:.2f}" for slope in found.values())] for step, found in slopes.items()]
    checks = [
        [name, with_spread(tweets[key])]
        for name, key in (
            ("validate stage", "validate_seconds"),
            ("validate stage with the process's start", "validate_process_seconds"),
            ("validate stage, CPU", "validate_cpu_seconds"),
            (f"{tweets['checks']} checks of the raw rows by Great Expectations, Data Docs included", "great_expectations_seconds"),
            ("import of Great Expectations", "import_seconds"),
            ("the same checks in plain pandas", "pandas_seconds"),
        )
    ]
    return [
        goals_table(reached),
        "Rows made of runs of words of real tweets; `split` contains clustering and the leakage check.",
        table(header, lines),
        "Exponent of CPU seconds over rows (1: linear), fitted to all sizes and between the two largest:",
        table(["step", "all sizes", "two largest"], growth),
        f"All {tweets['rows']:,} tweets of the demo's source, seconds:",
        table(["what", "seconds"], checks),
    ]


def panels(rows: Sequence[Row]) -> list[Panel]:
    """A panel for speed and one for memory of each step."""
    found: list[Panel] = []
    for step in dict.fromkeys(row["step"] for row in rows):
        own = {f"{row['rows']:,} rows": row for row in rows if row["step"] == step}
        found.append(Panel(f"{step}: speed", "rows/s", {name: row["rows_per_second"] for name, row in own.items()}))
        found.append(Panel(f"{step}: peak memory", "GiB", {name: row["peak_gibibytes"] for name, row in own.items()}))
    return found


def make_parser() -> argparse.ArgumentParser:
    """The command line of this part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="*", default=[10_000, 100_000, 1_000_000], help="rows to synthesise")
    parser.add_argument("--repetitions", type=int, default=1, help="processes for each measurement")
    parser.add_argument(
        "--keep", action="store_true", help="keep the sizes of the results file that this call does not measure, and the tweets"
    )
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    return parser


def run(options: argparse.Namespace) -> None:
    """Measure size by size, and write what there is after each, so that an interrupted run keeps it."""
    rows, tweets = kept(options.output / "data.json", options.sizes) if options.keep else ([], None)
    if tweets is None or not options.sizes:
        tweets = measure_tweets(options.repetitions)
        _write(options, rows, tweets)
    for size in options.sizes:
        rows = sorted([*rows, *measure_size(size, options.repetitions)], key=lambda row: (row["rows"], STEPS.index(row["step"])))
        _write(options, rows, tweets)


def _write(options: argparse.Namespace, rows: Sequence[Row], tweets: Row) -> None:
    slopes, reached = exponents(rows), goals(rows, tweets)
    write_results(
        "data",
        title=TITLE,
        device=torch.device("cpu"),
        settings={"task": TASK, "run_of_words": RUN_OF_WORDS},
        found={"goals": reached, "rows": list(rows), "exponents": slopes, "tweets": tweets},
        tables=tables(rows, slopes, tweets, reached),
        panels=panels(rows),
        columns=2,
        folder=options.output,
    )


if __name__ == "__main__":
    run(make_parser().parse_args())
