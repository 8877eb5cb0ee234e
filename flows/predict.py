"""`promptmill predict`: labels, or written answers, for texts from the command line or a CSV file, by a registered version."""

import csv
import json
import tempfile
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.terminal import answer, say, table
from pipeline.errors import SourceError
from pipeline.params import placeholders
from pipeline.records import read_json, replacing_file

if TYPE_CHECKING:
    from numpy.typing import NDArray

LONGEST_CELL = 60


def predict_texts(root: Path, options: Namespace) -> int:
    """Label, or answer in text, `options.text` or the rows of `options.file` and print or write the answers.

    Raises SourceError naming the file, row and column of bad input, RegistryError for an unknown version, BundleError when the
    stored bundle is altered.
    """
    from pipeline.registry import registry

    columns, rows = read_csv(options.file) if options.file else ([], [])  # before the slow part, so that a bad file is told at once
    if options.out:
        check_destination(options.out)
    version = registry.show(root=root, task=options.task, selector=options.version)["version"]
    with tempfile.TemporaryDirectory() as folder:
        bundle = registry.download_bundle(root=root, task=options.task, version=version, destination=Path(folder) / "bundle")
        fields, labels = bundle_fields_and_labels(bundle)
        rows = check_rows(options.file, columns, rows, fields, labels) if options.file else rows_of_texts(options.text, fields)
        asked = [{field: row[field] for field in fields} for row in rows]
        answers, document = written_answers(bundle, asked) if not labels else labelled_answers(bundle, asked)
    if options.out:
        write_csv(options.out, [*columns, *answers[0]], [{**row, **found} for row, found in zip(rows, answers, strict=True)])
        say(f"{len(rows)} rows answered by {options.task} version {version}: {options.out}")
    elif options.format == "json":
        answer(as_json(options.task, version, document))
    else:
        cells = [[*(_short(row[field]) for field in fields), *found.values()] for row, found in zip(rows, answers, strict=True)]
        answer(table([*fields, *answers[0]], cells))
    return 0


def read_csv(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Header and rows of a UTF-8 CSV file with one cell per column; raises SourceError naming the row."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            lines = [line for line in reader if line]
    except OSError as error:
        raise SourceError(f"{path} cannot be read ({error.strerror}). Name a CSV file you may read.") from None
    except UnicodeDecodeError as error:
        raise SourceError(f"{path} is not UTF-8 at byte {error.start}. Save it as UTF-8.") from None
    except csv.Error as error:
        raise SourceError(f"{path} is not a CSV file ({error}). Correct its quotes.") from None
    if len(lines) < 2:
        raise SourceError(f"{path} holds {len(lines)} line(s), expected a header and at least one row.")
    header = lines[0]
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise SourceError(f"{path} has the columns {twice} more than once. Rename them.")
    for number, line in enumerate(lines[1:], 1):
        if len(line) != len(header):
            raise SourceError(f"{path}, row {number} has {len(line)} cells, the header has {len(header)}. Correct that row.")
    return header, [dict(zip(header, line, strict=True)) for line in lines[1:]]


def check_rows(
    path: Path, columns: Sequence[str], rows: list[dict[str, str]], fields: Sequence[str], labels: Sequence[str]
) -> list[dict[str, str]]:
    """The rows, once every field has a column with text in each row and no column would be overwritten; raises SourceError."""
    missing = [field for field in fields if field not in columns]
    if missing:
        raise SourceError(f"{path} lacks the columns {missing}; it has {list(columns)}. Add or rename them.")
    added = ("label", *(f"p.{label}" for label in labels)) if labels else ("answer",)
    taken = [name for name in added if name in columns]
    if taken:
        raise SourceError(f"{path} already has the columns {taken}, which the answers would overwrite. Rename them.")
    for number, row in enumerate(rows, 1):
        for field in fields:
            if not row[field].strip():
                raise SourceError(f"{path}, row {number}, column {field!r} is empty. Fill or remove that row.")
    return rows


def rows_of_texts(texts: Sequence[str], fields: Sequence[str]) -> list[dict[str, str]]:
    """Texts from the command line as rows of a tuned prompt with one field."""
    if len(fields) != 1:
        raise SourceError(f"This tuned prompt takes the fields {list(fields)}, --text gives only one. Use --file with these columns.")
    for number, text in enumerate(texts, 1):
        if not text.strip():
            raise SourceError(f"--text number {number} is empty. Give it a text.")
    return [{fields[0]: text} for text in texts]


def bundle_fields_and_labels(bundle: Path) -> tuple[list[str], list[str]]:
    """The fields a verified bundle's template takes and the labels it answers (none: it answers in text), read without loading its base model."""
    template, verbalizers = read_json(bundle / "template.json"), read_json(bundle / "verbalizers.json")
    return list(dict.fromkeys(placeholders(template["template"]))), list(verbalizers)


def label_rows(labels: Sequence[str], probabilities: "NDArray[Any]") -> list[dict[str, str]]:
    """The likeliest label and all probabilities [N, C] of each row, as text."""
    return [
        {"label": labels[int(row.argmax())], **{f"p.{label}": f"{float(value):.6f}" for label, value in zip(labels, row, strict=True)}}
        for row in probabilities
    ]


def labelled_answers(bundle: Path, rows: Sequence[Mapping[str, str]]) -> tuple[list[dict[str, str]], list[dict[str, Any]]]:
    """The rows' labels and probabilities, as cells of a table and as JSON objects."""
    from pipeline.engine.predicting import load_predictor

    predictor = load_predictor(bundle, device="auto")
    probabilities = predictor.predict(rows, batch_size=64)
    return label_rows(predictor.labels, probabilities), label_objects(rows, predictor.labels, probabilities)


def written_answers(bundle: Path, rows: Sequence[Mapping[str, str]]) -> tuple[list[dict[str, str]], list[dict[str, Any]]]:
    """The rows' answers in text, as cells of a table and as JSON objects."""
    from pipeline.engine.predicting import load_text_predictor

    answers = load_text_predictor(bundle, device="auto").answer(rows, batch_size=64)
    return [{"answer": text} for text in answers], [{**row, "answer": text} for row, text in zip(rows, answers, strict=True)]


def label_objects(rows: Sequence[Mapping[str, str]], labels: Sequence[str], probabilities: "NDArray[Any]") -> list[dict[str, Any]]:
    """Each row with its label and the probabilities [N, C] as numbers."""
    return [
        {
            **row,
            "label": labels[int(found.argmax())],
            "probabilities": {label: float(value) for label, value in zip(labels, found, strict=True)},
        }
        for row, found in zip(rows, probabilities, strict=True)
    ]


def as_json(task: str, version: int, predictions: Sequence[Mapping[str, Any]]) -> str:
    """The answers as one JSON document."""
    return json.dumps({"task": task, "version": version, "predictions": predictions}, ensure_ascii=False, indent=2, allow_nan=False)


def check_destination(path: Path) -> None:
    """Raise SourceError when a result could not be written to `path`, before the work for it is done."""
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise SourceError(
            f"{path} cannot be written: {'it is a folder' if path.is_dir() else 'its folder does not exist'}. Name another file."
        )


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> None:
    """Write rows as UTF-8 CSV; a file under its final name is whole."""
    try:
        with replacing_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    except OSError as error:
        raise SourceError(f"{path} cannot be written ({error.strerror}). Name another file or free some space.") from None


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LONGEST_CELL else f"{line[: LONGEST_CELL - 1]}…"
