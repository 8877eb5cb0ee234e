import sys
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipeline.errors import BundleError, SourceError
from pipeline.registry import promotion
from pipeline.registry.connection import tracking_uri
from pipeline.registry.pyfunc import TunedPromptModel, _load_pyfunc
from tests.registry.registry_workspace import LABELS, TASK, Workspace


class ByLength:
    """Stands in for the engine, whose predictions have their own tests: the label depends on the text's length alone."""

    fields = ("text",)
    labels = tuple(LABELS)

    def __init__(self) -> None:
        self.batch_sizes: list[int] = []

    def predict(self, rows: Sequence[Mapping[str, str]], *, batch_size: int = 64) -> np.ndarray[Any, Any]:
        self.batch_sizes.append(batch_size)
        chosen = [len(row["text"]) % 3 for row in rows]
        return np.where(np.arange(3) == np.array(chosen)[:, None], 0.5, 0.25)


@pytest.fixture
def by_length(monkeypatch: pytest.MonkeyPatch) -> ByLength:
    predictor = ByLength()
    module = ModuleType("pipeline.engine.predicting")
    module.load_predictor = lambda bundle, *, device: predictor  # pyright: ignore[reportAttributeAccessIssue]
    module.load_text_predictor = module.load_predictor  # pyright: ignore[reportAttributeAccessIssue]
    module.is_text_bundle = lambda bundle: False  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "pipeline.engine.predicting", module)
    return predictor


def test_rows_get_a_label_and_probabilities_on_their_own_index() -> None:
    model = TunedPromptModel(ByLength())
    found = model.predict(pd.DataFrame({"other": [1, 2], "text": ["four", "fives"]}, index=[7, 3]))
    expected = {"label": ["neutral", "positive"], "p.negative": [0.25, 0.25], "p.neutral": [0.5, 0.25], "p.positive": [0.25, 0.5]}
    pd.testing.assert_frame_equal(found, pd.DataFrame(expected, index=[7, 3]), check_dtype=False)
    pd.testing.assert_frame_equal(model.predict([{"text": "four"}, {"text": "fives"}]), found.reset_index(drop=True))


def test_no_rows_give_no_rows_with_the_same_columns() -> None:
    for nothing in (pd.DataFrame({"text": []}), []):
        found = TunedPromptModel(ByLength()).predict(nothing)
        assert list(found.columns) == ["label", "p.negative", "p.neutral", "p.positive"]
        assert len(found) == 0


@pytest.mark.parametrize("cell", [None, float("nan"), 3, pd.NA, b"bytes"])
def test_a_cell_without_text_is_named(cell: object) -> None:
    with pytest.raises(SourceError, match=r"Row 2, column 'text' holds"):
        TunedPromptModel(ByLength()).predict(pd.DataFrame({"text": pd.Series(["fine", cell], dtype=object)}))


def test_a_missing_column_is_named() -> None:
    with pytest.raises(SourceError, match=r"lacks the columns \['text'\]; it has \['tweet'\]"):
        TunedPromptModel(ByLength()).predict(pd.DataFrame({"tweet": ["x"]}))
    with pytest.raises(SourceError, match="one mapping"):
        TunedPromptModel(ByLength()).predict({"text": "x"})


def test_mlflow_loads_the_champion_by_name_from_anywhere(
    workspace: Workspace, by_length: ByLength, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow.pyfunc

    promotion.promote(root=workspace.root, task=TASK, version=workspace.register())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri(root=workspace.root))
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    model = mlflow.pyfunc.load_model(f"models:/{TASK}@champion")
    assert model.metadata.signature.inputs.input_names() == ["text"]
    assert model.metadata.signature.outputs.input_names() == ["label", "p.negative", "p.neutral", "p.positive"]
    found = model.predict(pd.DataFrame({"text": ["four", "fives"]}), params={"batch_size": 5})
    assert found["label"].tolist() == ["neutral", "positive"]
    assert by_length.batch_sizes == [5]


def test_a_bundle_without_its_mlmodel_is_refused(workspace: Workspace) -> None:
    with pytest.raises(BundleError, match="MLmodel"):
        _load_pyfunc(str(workspace.layout.path("bundle")))
