"""`promptmill data quarantine`: the rows that the data contract and the split set aside, listed or exported."""

from argparse import ArgumentTypeError, Namespace
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.terminal import answer, say, table
from pipeline.errors import StageInputError

if TYPE_CHECKING:
    import pyarrow as pa

LISTED_ROWS = 20
COLUMNS = ("source row", "row id", "rule", "reason")
EXPORT_SUFFIXES = (".csv", ".parquet", ".jsonl")


def add_commands(add: Any) -> None:
    """Declare the subcommand; `add(name, handler, summary, *examples, epilog)` returns its parser."""
    command = add(
        "quarantine", "quarantine", "list or export the rows that were set aside",
        "promptmill data quarantine tweet_sentiment", "promptmill data quarantine tweet_sentiment --rule conflicting_labels --limit 5",
        "promptmill data quarantine tweet_sentiment --export aside.csv",
        epilog="The list shows no text; an export has every column. In CSV an apostrophe stands before what a spreadsheet would take for a formula.",
    )  # fmt: skip
    command.add_argument("task", metavar="TASK", help="a name under `tasks` in params.yaml")
    command.add_argument("--rule", metavar="RULE", help="only the rows set aside under this rule")
    command.add_argument("--limit", type=_count, metavar="N", help=f"at most so many rows (default: {LISTED_ROWS}; of an export: all)")
    command.add_argument("--export", type=_export_file, metavar="FILE", help=f"write the rows to a file ({', '.join(EXPORT_SUFFIXES)})")


def quarantine(options: Namespace) -> int:
    """List the rows that were set aside, or export them. Raises StageInputError for a rule without rows."""
    from pipeline.data.set_aside import count_rules, export_rows, rows_set_aside
    from pipeline.layout import PARAMS_FILE, Layout, find_root
    from pipeline.params import load_task

    root = find_root(Path.cwd())
    load_task(root / PARAMS_FILE, options.task)
    layout = Layout(root, options.task)
    paths = [layout.path("quarantined"), layout.path("set_aside")]
    counts = count_rules(paths)
    if options.rule is not None and options.rule not in counts:
        known = ", ".join(f"{rule} ({n})" for rule, n in counts.items()) or "none"
        raise StageInputError(f"{options.task} has no rows set aside under {options.rule!r}. Rules with rows: {known}.")
    limit = options.limit if options.limit or options.export else LISTED_ROWS
    rows = rows_set_aside(paths, rule=options.rule, limit=limit)
    if options.export is not None:
        say(f"{export_rows(rows, options.export):,} rows written to {options.export}")
    else:
        answer(_listing(counts, rows, options))
    return 0


def _listing(counts: Mapping[str, int], rows: "Iterable[pa.RecordBatch]", options: Namespace) -> str:
    if not counts:
        return f"No row of {options.task} was set aside."
    shown = [row for batch in rows for row in batch.select(["source_row", "row_id", "rule", "reason"]).to_pylist()]
    total = counts[options.rule] if options.rule else sum(counts.values())
    lines = [table(("rule", "rows"), [(rule, f"{n:,}") for rule, n in counts.items()]), ""]
    lines.append(table(COLUMNS, [tuple(_plain(value) for value in row.values()) for row in shown]))
    if len(shown) < total:
        lines += ["", f"{len(shown):,} of {total:,} rows; --limit shows more, --export FILE has all of them with their texts."]
    return "\n".join(lines)


def _plain(value: object) -> str:
    """One line without control characters: a label quoted in a reason could hold any."""
    return "".join(character if character.isprintable() else " " for character in str(value))


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text} is no number of rows above 0")
    return int(text)


def _export_file(text: str) -> Path:
    if Path(text).suffix not in EXPORT_SUFFIXES:
        raise ArgumentTypeError(f"{text}: the suffix must be one of {', '.join(EXPORT_SUFFIXES)}")
    return Path(text)
