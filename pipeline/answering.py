"""What a tuned prompt bundle answers to rows, as columns: `label` and `p.<label>`, or `answer` in free text."""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline.errors import SourceError, TemplateError
from pipeline.params import placeholders
from pipeline.records import read_json
from pipeline.row_files import ROWS_AT_ONCE, RowFile, texts_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

BATCH_SIZE = 64  # rows in one pass of the base model

Answer = Callable[[Sequence[Mapping[str, str]]], pa.RecordBatch]
Pairs = Iterator[tuple[pa.RecordBatch, pa.RecordBatch]]


def bundle_fields_and_labels(bundle: Path) -> tuple[list[str], list[str]]:
    """The fields a verified bundle's template takes and the labels it answers (none: it answers in text), read without loading its base model."""
    template, verbalizers = read_json(bundle / "template.json"), read_json(bundle / "verbalizers.json")
    return list(dict.fromkeys(placeholders(template["template"]))), list(verbalizers)


def answer_schema(labels: Sequence[str]) -> pa.Schema:
    """The columns of the answers: the label and the probability of each one in [0, 1], or for no labels the text."""
    if not labels:
        return pa.schema([("answer", pa.string())])
    return pa.schema([("label", pa.string()), *((f"p.{label}", pa.float64()) for label in labels)])


def label_answers(labels: Sequence[str], probabilities: "NDArray[Any]") -> pa.RecordBatch:
    """The likeliest label and all probabilities [N, C] of each row."""
    likeliest = [labels[int(index)] for index in probabilities.argmax(axis=1)]
    return pa.RecordBatch.from_arrays([likeliest, *probabilities.astype(float).T], schema=answer_schema(labels))


def load_answer(bundle: Path) -> Answer:
    """Load a verified bundle and its base model; the function returned answers rows, each with text in every field.

    Raises BundleError when the base model is not the one the prompt was tuned on.
    """
    from pipeline.engine.predicting import is_text_bundle, load_predictor, load_text_predictor

    if is_text_bundle(bundle):
        writer = load_text_predictor(bundle, device="auto")

        def written(rows: Sequence[Mapping[str, str]]) -> pa.RecordBatch:
            return pa.RecordBatch.from_arrays([writer.answer(rows, batch_size=BATCH_SIZE)], schema=answer_schema(()))

        return written
    predictor = load_predictor(bundle, device="auto")

    def labelled(rows: Sequence[Mapping[str, str]]) -> pa.RecordBatch:
        return label_answers(predictor.labels, predictor.predict(rows, batch_size=BATCH_SIZE))

    return labelled


def check_columns(path: Path, columns: Sequence[str], fields: Sequence[str], labels: Sequence[str]) -> None:
    """Raise SourceError unless every field has a column and no column would be overwritten by the answers."""
    missing = [field for field in fields if field not in columns]
    if missing:
        raise SourceError(f"{path} lacks the columns {missing}; it has {list(columns)}. Add or rename them.")
    taken = [name for name in answer_schema(labels).names if name in columns]
    if taken:
        raise SourceError(f"{path} already has the columns {taken}, which the answers would overwrite. Rename them.")


def answer_batch(answer: Answer, rows: RowFile, batch: pa.RecordBatch, fields: Sequence[str], first_row: int) -> pa.RecordBatch:
    """The answers to a batch of a file whose first row is `first_row`; raises SourceError and TemplateError naming the file and the rows."""
    asked = texts_of(rows, batch, fields, first_row)
    try:
        return answer(asked)
    except TemplateError as error:  # it counts within the batch
        last = first_row + batch.num_rows - 1
        raise TemplateError(f"{rows.path}, rows {first_row} to {last}, of which {first_row} counts as 1: {error}") from None


@contextmanager
def answers_here(rows: RowFile, bundle: Path, fields: Sequence[str], *, rows_at_once: int = ROWS_AT_ONCE) -> Generator[Pairs]:
    """Yield the batches of a file, each with its answers, computed in this process; what is raised is as in load_answer and answer_batch."""
    answer = load_answer(bundle)

    def pairs() -> Pairs:
        first_row = 1
        for batch in rows.batches(rows_at_once):
            yield batch, answer_batch(answer, rows, batch, fields, first_row)
            first_row += batch.num_rows

    yield pairs()
