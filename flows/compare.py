"""`promptmill compare`: two versions, or a version and a file of somebody else's answers, on the same labelled rows."""

import json
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.terminal import answer, number, table
from pipeline.errors import SourceError

if TYPE_CHECKING:
    from flows.version_answers import Row, StoredVersion

EXAMPLES = 5
LONGEST_TEXT = 80
SUFFIX = ".csv"


def add_commands(add: Any) -> None:
    """Declare the subcommand; `add(name, handler, summary, *examples, epilog)` returns its parser."""
    command = add(
        "compare", "compare", "compare two versions, or a version and a file of other answers, on the same labelled rows",
        "promptmill compare tweet_sentiment@3 tweet_sentiment@champion",
        "promptmill compare tweet_sentiment@3 tweet_sentiment@2 --data lately.csv",
        "promptmill compare tweet_sentiment theirs.csv --json",
        epilog="A file of answers is UTF-8 CSV with a column per field, `label` and `prediction`, such as `promptmill evaluate --out` writes. "
        "Nothing is recorded or registered.",
    )  # fmt: skip
    command.add_argument("first", metavar="A", help="TASK, TASK@VERSION or TASK@ALIAS (without a version: the champion)")
    command.add_argument("second", metavar="B", help=f"the same, or a file of answers (*{SUFFIX})")
    command.add_argument("--data", type=Path, metavar="FILE.CSV", help="labelled rows (default: the present test split of A's task)")
    command.add_argument("--examples", type=int, default=EXAMPLES, metavar="N", help=f"rows to show of each kind (default: {EXAMPLES})")
    command.add_argument("--json", action="store_true", help="print JSON")


def compare(options: Namespace) -> int:
    """Print both sides' figures, their difference with its interval, McNemar's test, and rows on which only one is right."""
    from flows.commands import workspace
    from flows.version_answers import LABEL, PREDICTION, ask, check_labelled, chosen, fetched
    from pipeline.evaluation.paired import compare_answers

    root = workspace()
    theirs = Path(options.second) if options.second.endswith(SUFFIX) else None
    if theirs and options.data:
        raise SourceError(f"{theirs} holds its own rows, so --data {options.data} has no place. Leave one of them out.")
    columns, rows = _rows(theirs or options.data)
    with fetched(root, options.first, *([] if theirs else [options.second])) as versions:
        first = versions[0]
        _check_comparable(versions)
        where = theirs or options.data or Path(f"the test split of {first.task}")
        if not rows:
            columns, rows = _test_split(root, first)
        check_labelled(where, columns, rows, first, also=(PREDICTION,) if theirs else ())
        answers = [chosen(version, found) for version, found in zip(versions, ask(versions, rows), strict=True)]
    answers += [[row[PREDICTION] for row in rows]] if theirs else []
    names = [*(version.name for version in versions), *([str(theirs)] if theirs else [])]
    found = compare_answers(first.labels, [row[LABEL] for row in rows], *answers)
    examples = _examples(rows, first.fields, answers, options.examples)
    record: dict[str, Any] = {
        "names": dict(zip(("first", "second"), names, strict=True)),
        "data": str(where),
        **found,
        "examples": examples,
    }
    answer(json.dumps(record, ensure_ascii=False, indent=2, allow_nan=False) if options.json else _text(record))
    return 0


def _rows(path: Path | None) -> tuple[list[str], list[dict[str, str]]]:
    from pipeline.row_files import read_csv

    return read_csv(path) if path else ([], [])


def _test_split(root: Path, version: "StoredVersion") -> tuple[list[str], list[dict[str, str]]]:
    """The rows of the task's test split as it lies in this checkout; raises SourceError when there is none."""
    from flows.version_answers import LABEL
    from pipeline.layout import Layout
    from pipeline.records import read_parquet

    path = Layout(root, version.task).path("test")
    if not path.is_file():
        raise SourceError(
            f"There is no test split of {version.task} at {path}. Run `promptmill run {version.task}`, or name rows with --data."
        )
    columns = [*version.fields, LABEL]
    frame = read_parquet(path, columns)
    return columns, [dict(zip(columns, map(str, values), strict=True)) for values in frame[columns].to_numpy().tolist()]


def _check_comparable(versions: Sequence["StoredVersion"]) -> None:
    first = versions[0]
    for other in versions[1:]:
        for what, ours, their in (("fields", first.fields, other.fields), ("labels", first.labels, other.labels)):
            if sorted(ours) != sorted(their):
                raise SourceError(f"{first.name} has the {what} {ours}, {other.name} has {their}: no row could be given to both.")


def _examples(
    rows: Sequence["Row"], fields: Sequence[str], answers: Sequence[Sequence[str]], at_most: int
) -> dict[str, list[dict[str, str]]]:
    """The first rows on which only one of the two is right, both ways."""
    from flows.version_answers import LABEL

    found: dict[str, list[dict[str, str]]] = {"only_first_right": [], "only_second_right": []}
    for row, first, second in zip(rows, *answers, strict=True):
        if (first == row[LABEL]) != (second == row[LABEL]):
            kind = found["only_first_right" if first == row[LABEL] else "only_second_right"]
            if len(kind) < at_most:
                kind.append({"text": " | ".join(row[field] for field in fields), "label": row[LABEL], "first": first, "second": second})
    return found


def _text(record: Mapping[str, Any]) -> str:
    names: Mapping[str, str] = record["names"]
    figures = [(name, _estimate(record[side]["accuracy"]), _estimate(record[side]["macro_f1"])) for side, name in names.items()]
    figures.append(("difference", _estimate(record["difference"]["accuracy"]), _estimate(record["difference"]["macro_f1"])))
    lines = [f"{names['first']} and {names['second']} on {record['n']:,} rows of {record['data']} (intervals at 95 %)", ""]
    lines += [table(("", "accuracy", "macro F1"), figures), "", _verdict(record)]
    for side, name in names.items():
        kind = f"only_{side}_right"
        shown = record["examples"][kind]
        if shown:
            lines += ["", f"Only {name} is right on {record[kind]:,} rows, among them:"]
            lines.append(table(("text", "label", "A says", "B says"), [(_short(one["text"]), *list(one.values())[1:]) for one in shown]))
    return "\n".join(lines)


def _verdict(record: Mapping[str, Any]) -> str:
    counts = f"Both right {record['both_right']:,}, both wrong {record['both_wrong']:,}, only A right {record['only_first_right']:,}, only B {record['only_second_right']:,}."
    if record["p_value"] is None:
        return f"{counts} SAME: they are right on the same rows."
    said = f"Exact McNemar p {record['p_value']:.3g}"
    if record["p_value"] > record["significance"]:
        return f"{counts} {said}: NOT DECIDED, a difference of this size can be chance on so many rows."
    better = record["names"]["first" if record["only_first_right"] > record["only_second_right"] else "second"]
    return f"{counts} {said}: {better} is right more often beyond chance."


def _estimate(figure: Mapping[str, Any]) -> str:
    if figure["value"] is None:
        return "-"
    return f"{number(figure['value'])} ({number(figure['low'])} to {number(figure['high'])})"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LONGEST_TEXT else f"{line[: LONGEST_TEXT - 1]}…"
