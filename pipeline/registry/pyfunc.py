"""The MLflow loader of a tuned prompt: `mlflow.pyfunc.load_model("models:/<task>@champion").predict(frame)`.

It needs the installed package and the base model that the bundle's manifest names; a version holds neither code nor pickles.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.errors import BundleError, SourceError
from pipeline.manifest import manifest_sha256, verify_bundle
from pipeline.registry.model_files import LIST_FILE, verify_model_files
from pipeline.registry.signatures import verify_for_consumer

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

_MANIFEST_SHA256 = "promptmill.manifest_sha256"


class Predictor(Protocol):
    """What the engine loads from a bundle."""

    @property
    def fields(self) -> tuple[str, ...]:
        """The names that the template takes."""
        ...

    @property
    def labels(self) -> tuple[str, ...]:
        """The closed label set."""
        ...

    def predict(self, rows: Sequence[Mapping[str, str]], *, batch_size: int = 64) -> "np.ndarray[Any, Any]":
        """Probabilities [N, C] in the order of `labels`."""
        ...


class TunedPromptModel:
    """What `mlflow.pyfunc.load_model` wraps: checks the rows, asks the predictor, names the columns."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> "pd.DataFrame":
        """Label and probabilities of each row.

        `model_input`: a DataFrame, or a list of mappings, with one text per field (other columns are ignored); `params`:
        `batch_size`. Returns a frame with `label` and one `p.<label>` per label, on the index of the input. Raises SourceError
        naming the missing column, or the row (counted from 1) and column that holds no text.
        """
        import pandas as pd

        rows, index = _rows(model_input, self._predictor.fields)
        labels = self._predictor.labels
        frame = pd.DataFrame(index=index, columns=pd.Index([f"p.{label}" for label in labels]), dtype=float)
        if rows:
            frame[:] = self._predictor.predict(rows, batch_size=int((params or {}).get("batch_size", 64)))
        best = frame.to_numpy().argmax(axis=1) if rows else []
        frame.insert(0, "label", pd.Series([labels[position] for position in best], index=index, dtype="str"))
        return frame


class TextPredictor(Protocol):
    """What the engine loads from a bundle that answers in text."""

    @property
    def fields(self) -> tuple[str, ...]:
        """The names that the template takes."""
        ...

    def answer(self, rows: Sequence[Mapping[str, str]], *, batch_size: int = 64) -> list[str]:
        """The written answer to each row."""
        ...


class TextPromptModel:
    """What `mlflow.pyfunc.load_model` wraps for a task with free-text targets."""

    def __init__(self, predictor: TextPredictor) -> None:
        self._predictor = predictor

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> "pd.DataFrame":
        """The written answer to each row, as the column `answer` on the index of the input; otherwise as TunedPromptModel.predict."""
        import pandas as pd

        rows, index = _rows(model_input, self._predictor.fields)
        answers = self._predictor.answer(rows, batch_size=int((params or {}).get("batch_size", 64))) if rows else []
        return pd.DataFrame({"answer": pd.Series(answers, index=index, dtype="str")})


def _load_pyfunc(path: str) -> TunedPromptModel | TextPromptModel:  # pyright: ignore[reportUnusedFunction]  # MLflow calls it by this name
    """Verify the bundle at `path` and load it; raises BundleError when it is not what was registered."""
    bundle = Path(path)
    verify_bundle(bundle)
    if (bundle.parents[1] / LIST_FILE).exists():
        verify_model_files(bundle.parents[1])  # first, so that a hash altered in MLmodel is told as that file's fault
    _check_registered(bundle)
    verify_for_consumer(bundle)
    from pipeline.engine.predicting import is_text_bundle, load_predictor, load_text_predictor

    if is_text_bundle(bundle):
        return TextPromptModel(load_text_predictor(bundle, device="auto"))
    return TunedPromptModel(load_predictor(bundle, device="auto"))


def _check_registered(bundle: Path) -> None:
    """Compare the manifest with the sha256 that the MLmodel file beside the bundle holds."""
    description = bundle.parents[1] / "MLmodel"
    try:
        metadata: Any = YAML(typ="safe", pure=True).load(description.read_text(encoding="utf-8"))["metadata"]
        expected = metadata[_MANIFEST_SHA256]
    except (OSError, ValueError, KeyError, TypeError, YAMLError) as error:
        raise BundleError(f"{description} does not say which manifest was registered ({error!r}). Register the bundle again.") from error
    found = manifest_sha256(bundle)
    if found != expected:
        raise BundleError(f"{bundle} has a manifest of sha256 {found}, registered was {expected}: it was altered. Register it again.")


def _rows(model_input: Any, fields: tuple[str, ...]) -> tuple[list[dict[str, str]], "pd.Index[Any]"]:
    import pandas as pd

    if isinstance(model_input, Mapping):
        raise SourceError(f"The input is one mapping; expected a DataFrame or a list of mappings with the columns {list(fields)}.")
    frame = model_input if isinstance(model_input, pd.DataFrame) else pd.DataFrame(list(model_input), dtype=object)
    missing = [field for field in fields if field not in frame.columns]
    if missing and len(frame):
        raise SourceError(f"The input lacks the columns {missing}; it has {[str(name) for name in frame.columns]}. Add or rename them.")
    cells: dict[str, list[Any]] = {field: frame[field].tolist() if len(frame) else [] for field in fields}
    for field, values in cells.items():
        for number, value in enumerate(values, 1):
            if not isinstance(value, str):
                raise SourceError(f"Row {number}, column {field!r} holds {value!r}, expected text. Fill or remove that row.")
    return [dict(zip(fields, row, strict=True)) for row in zip(*cells.values(), strict=True)], frame.index
