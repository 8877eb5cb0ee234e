"""`promptmill evaluate`: how well a version does on labelled rows of your own. Nothing is recorded."""

import json
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.terminal import answer, number, say, table

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from flows.version_answers import Row, StoredVersion


def add_commands(add: Any) -> None:
    """Declare the subcommand; `add(name, handler, summary, *examples, epilog)` returns its parser."""
    command = add(
        "evaluate", "evaluate", "measure a version on labelled rows of your own",
        "promptmill evaluate tweet_sentiment --data lately.csv",
        "promptmill evaluate tweet_sentiment@3 --data lately.csv --out answered.csv --json",
        epilog="The file is UTF-8 CSV with a column per field of the template, and `label`. Nothing is recorded or registered.",
    )  # fmt: skip
    command.add_argument("task", metavar="TASK[@VERSION|@ALIAS]", help="without a version: the champion")
    command.add_argument("--data", type=Path, required=True, metavar="FILE.CSV", help="the labelled rows")
    command.add_argument("--out", type=Path, metavar="OUT.CSV", help="write the rows with `prediction` and `p.<label>` here")
    command.add_argument("--json", action="store_true", help="print JSON")


def evaluate(options: Namespace) -> int:
    """Print the version's metrics on the file, each with its interval and rows."""
    from flows.commands import workspace
    from flows.predict import check_destination
    from flows.version_answers import LABEL, ask, check_labelled, fetched
    from pipeline.row_files import read_csv

    columns, rows = read_csv(options.data)  # before the slow part, so that a bad file is told at once
    if options.out:
        check_destination(options.out)
    with fetched(workspace(), options.task) as (version,):
        check_labelled(options.data, columns, rows, version)
        (probabilities,) = ask([version], rows)
    from pipeline.evaluation.paired import measure

    found = measure(version.labels, [row[LABEL] for row in rows], probabilities)
    if options.out:
        _write(options.out, columns, rows, version, probabilities)
    record = {"task": version.task, "version": version.number, "data": str(options.data), "n": len(rows), "metrics": found}
    answer(json.dumps(record, ensure_ascii=False, indent=2, allow_nan=False) if options.json else _text(record))
    return 0


def _write(path: Path, columns: Sequence[str], rows: Sequence["Row"], version: "StoredVersion", probabilities: "NDArray[Any]") -> None:
    import pyarrow as pa

    from flows.version_answers import PREDICTION
    from pipeline.answering import label_answers
    from pipeline.row_files import write_rows

    answers = label_answers(version.labels, probabilities)
    answers = answers.rename_columns([PREDICTION, *answers.schema.names[1:]])
    kept = [name for name in columns if name not in answers.schema.names]
    batch = pa.RecordBatch.from_pydict({name: [row[name] for row in rows] for name in kept})
    with write_rows(path, batch.schema, answers.schema) as write:
        write(batch, answers)
    say(f"{len(rows)} rows answered by {version.name}: {path}")


def _text(record: Mapping[str, Any]) -> str:
    lines = [_cells(name, figure) for name, figure in _figures(record["metrics"])]
    title = f"{record['task']} version {record['version']} on {record['n']:,} rows of {record['data']} (intervals at 95 %)"
    return f"{title}\n\n{table(('metric', 'value', 'interval', 'rows'), lines)}"


def _figures(metrics: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """(name, estimate) of every estimate, those of a label under its name."""
    whole: list[tuple[str, Mapping[str, Any]]] = [
        (name, found) for name, found in metrics.items() if isinstance(found, dict) and "value" in found
    ]
    for label, figures in metrics["per_class"].items():
        whole += [(f"{name} of {label}", figures[name]) for name in ("precision", "recall", "f1")]
    return whole


def _cells(name: str, figure: Mapping[str, Any]) -> tuple[str, ...]:
    if figure["value"] is None:
        return name, "-", figure["why"], number(figure["n"])
    return name, number(figure["value"]), f"{number(figure['low'])} to {number(figure['high'])}", number(figure["n"])
