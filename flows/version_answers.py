"""What registered versions answer to labelled rows of one's own: reading the rows, fetching the versions, asking them."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from pipeline.errors import SourceError
from pipeline.layout import TASK_NAME, TASK_NAME_RULE
from pipeline.records import read_json

if TYPE_CHECKING:
    from numpy.typing import NDArray

LABEL, PREDICTION = "label", "prediction"
BATCH_SIZE = 64

Row = Mapping[str, str]


@dataclass(frozen=True)
class StoredVersion:
    """A version whose verified bundle lies in a folder for now: its fields, and the labels it answers."""

    task: str
    number: int
    bundle: Path
    fields: list[str]
    labels: list[str]

    @property
    def name(self) -> str:
        """What people call it."""
        return f"{self.task} version {self.number}"

    @property
    def weights(self) -> str:
        """The sha256 of its base model's weights."""
        return read_json(self.bundle / "manifest.json")["base_model"]["weights_sha256"]


@contextmanager
def fetched(root: Path, *selectors: str) -> Generator[list[StoredVersion]]:
    """The versions meant by `TASK`, `TASK@VERSION` or `TASK@ALIAS` (without a version: the champion), for the length of the block.

    Raises RegistryError for an unknown one, BundleError for one that was altered, SourceError for one that answers free text.
    """
    from pipeline.answering import bundle_fields_and_labels
    from pipeline.registry import registry

    with TemporaryDirectory() as folder:
        found: list[StoredVersion] = []
        for selector in selectors:
            task, _, wanted = selector.partition("@")
            if not TASK_NAME.fullmatch(task):
                raise SourceError(f"{selector!r} names no task: {TASK_NAME_RULE}")
            number = registry.show(root=root, task=task, selector=wanted or registry.CHAMPION)["version"]
            bundle = registry.download_bundle(root=root, task=task, version=number, destination=Path(folder) / str(len(found)))
            fields, labels = bundle_fields_and_labels(bundle)
            if not labels:
                raise SourceError(
                    f"{task} version {number} answers free text and has no labels to measure it by. Name a version that labels."
                )
            found.append(StoredVersion(task, number, bundle, fields, labels))
        yield found


def check_labelled(where: Path, columns: Sequence[str], rows: Sequence[Row], version: StoredVersion, *, also: Sequence[str] = ()) -> None:
    """Raise SourceError naming file, row and column unless every row has each field and a known label (and one in each of `also`)."""
    answers = (LABEL, *also)
    missing = [name for name in (*version.fields, *answers) if name not in columns]
    if missing:
        raise SourceError(f"{where} lacks the columns {missing}; it has {list(columns)}. Add or rename them.")
    for number, row in enumerate(rows, 1):
        for field in version.fields:
            if not row[field].strip():
                raise SourceError(f"{where}, row {number}, column {field!r} is empty. Fill or remove that row.")
        for name in answers:
            if row[name] not in version.labels:
                raise SourceError(
                    f"{where}, row {number}, column {name!r} is {row[name]!r}, {version.name} knows {version.labels}. Correct or remove that row."
                )


def ask(versions: Sequence[StoredVersion], rows: Sequence[Row]) -> list["NDArray[Any]"]:
    """Label probabilities [N, K] of each version; versions on one base model share it."""
    from pipeline.engine.predicting import load_predictor

    bases: dict[str, Any] = {}
    answers: list[NDArray[Any]] = []
    for version in versions:
        predictor = load_predictor(version.bundle, base=bases.get(version.weights), device="auto")
        bases[version.weights] = predictor.base
        fields = [{field: row[field] for field in version.fields} for row in rows]
        answers.append(predictor.predict(fields, batch_size=BATCH_SIZE))
    return answers


def chosen(version: StoredVersion, probabilities: "NDArray[Any]") -> list[str]:
    """The likeliest label of each row."""
    return [version.labels[int(index)] for index in probabilities.argmax(axis=1)]
