"""`promptmill predict`: labels, or written answers, for texts from the command line or a CSV or Parquet file, by a registered version."""

import json
import tempfile
from argparse import Namespace
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.terminal import answer, say, table
from pipeline.errors import SourceError

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.row_files import RowFile

LONGEST_CELL = 60
ACTORS = 2


def predict_texts(root: Path, options: Namespace) -> int:
    """Label, or answer in text, `options.text` or the rows of `options.file` and print or write the answers.

    Raises SourceError naming the file, row and column of bad input, RegistryError for an unknown version, BundleError when the
    stored bundle is altered, ClusterError when Ray was asked for and cannot be used.
    """
    if not options.file:
        with _fetched(root, options) as (version, bundle, fields, labels):
            from pipeline.answering import load_answer

            asked = rows_of_texts(options.text, fields)
            show_answers(options, version, labels, asked, load_answer(bundle)(asked).to_pylist())
        return 0
    from pipeline.row_files import open_rows

    if options.out:
        check_destination(options.out)
    with open_rows(options.file) as rows, _fetched(root, options) as (version, bundle, fields, labels):
        answer_file(options, rows, version, bundle, fields, labels)
    return 0


@contextmanager
def _fetched(root: Path, options: Namespace) -> Generator[tuple[int, Path, list[str], list[str]]]:
    """The version that is meant, its verified bundle in a folder for the length of the block, its fields and its labels."""
    from pipeline.answering import bundle_fields_and_labels
    from pipeline.registry import registry

    version = registry.show(root=root, task=options.task, selector=options.version)["version"]
    with tempfile.TemporaryDirectory() as folder:
        bundle = registry.download_bundle(root=root, task=options.task, version=version, destination=Path(folder) / "bundle")
        yield version, bundle, *bundle_fields_and_labels(bundle)


def answer_file(options: Namespace, rows: "RowFile", version: int, bundle: Path, fields: list[str], labels: list[str]) -> None:
    """All of the file is checked before the slow part, so that a bad row is told at once; then it is read again, answered and written."""
    from pipeline.answering import answer_schema, check_columns
    from pipeline.row_files import check_texts, is_parquet, texts_of, write_rows

    check_columns(rows.path, rows.columns, fields, labels)
    total = check_texts(rows, fields, for_csv=bool(options.out) and not is_parquet(options.out))
    with _answered(options, rows, total, bundle, fields) as batches:
        if options.out:
            with write_rows(options.out, rows.schema, answer_schema(labels)) as write:
                for batch, found in batches:
                    write(batch, found)
            say(f"{total} rows answered by {options.task} version {version}: {options.out}")
            return
        asked: list[dict[str, str]] = []
        answers: list[dict[str, Any]] = []
        for batch, found in batches:
            asked += texts_of(rows, batch, fields, len(asked) + 1)
            answers += found.to_pylist()
        show_answers(options, version, labels, asked, answers)


@contextmanager
def _answered(
    options: Namespace, rows: "RowFile", total: int, bundle: Path, fields: Sequence[str]
) -> "Generator[Iterator[tuple[pa.RecordBatch, pa.RecordBatch]]]":
    """The batches of the file with their answers, by the engine that was asked for, counted while they pass."""
    from pipeline.answering import answers_here
    from pipeline.progress import Progress
    from pipeline.ray_answering import answers_on_ray

    engine = (
        answers_on_ray(rows, bundle, fields, actors=options.actors or ACTORS)
        if options.engine == "ray"
        else answers_here(rows, bundle, fields)
    )
    with engine as pairs, Progress("predict", total, "row") as progress:

        def counted() -> "Iterator[tuple[pa.RecordBatch, pa.RecordBatch]]":
            count = 0
            for batch, found in pairs:
                yield batch, found
                count += batch.num_rows
                progress.advance(batch.num_rows)
            if count != total:
                raise SourceError(f"{rows.path} had {total} rows, and {count} were answered: it was changed meanwhile. Run it again.")

        yield counted()


def rows_of_texts(texts: Sequence[str], fields: Sequence[str]) -> list[dict[str, str]]:
    """Texts from the command line as rows of a tuned prompt with one field."""
    if len(fields) != 1:
        raise SourceError(f"This tuned prompt takes the fields {list(fields)}, --text gives only one. Use --file with these columns.")
    for number, text in enumerate(texts, 1):
        if not text.strip():
            raise SourceError(f"--text number {number} is empty. Give it a text.")
    return [{fields[0]: text} for text in texts]


def show_answers(
    options: Namespace, version: int, labels: Sequence[str], asked: Sequence[Mapping[str, str]], found: Sequence[Mapping[str, Any]]
) -> None:
    """Print the rows that were asked with the columns of their answers, as a table or as JSON."""
    if options.format == "json":
        answer(as_json(options.task, version, [{**row, **answer_object(labels, one)} for row, one in zip(asked, found, strict=True)]))
        return
    cells = [
        [*map(_short, row.values()), *(value if isinstance(value, str) else f"{value:.6f}" for value in one.values())]
        for row, one in zip(asked, found, strict=True)
    ]
    answer(table([*asked[0], *found[0]], cells))


def answer_object(labels: Sequence[str], found: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of one answer as an object in which the probabilities are together."""
    if not labels:
        return dict(found)
    return {"label": found["label"], "probabilities": {label: found[f"p.{label}"] for label in labels}}


def as_json(task: str, version: int, predictions: Sequence[Mapping[str, Any]]) -> str:
    """The answers as one JSON document."""
    return json.dumps({"task": task, "version": version, "predictions": predictions}, ensure_ascii=False, indent=2, allow_nan=False)


def check_destination(path: Path) -> None:
    """Raise SourceError when a result could not be written to `path`, before the work for it is done."""
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise SourceError(
            f"{path} cannot be written: {'it is a folder' if path.is_dir() else 'its folder does not exist'}. Name another file."
        )


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LONGEST_CELL else f"{line[: LONGEST_CELL - 1]}…"
