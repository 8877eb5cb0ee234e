"""A workspace per test, with an empty MLflow database copied into it (making one takes seconds)."""

import shutil
from pathlib import Path

import pytest

from pipeline.registry.connection import connect
from tests.registry.registry_workspace import Workspace, write_outputs


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("empty")
    connect(root=root, create=True)
    return root / ".promptmill" / "mlflow" / "mlflow.db"


@pytest.fixture
def workspace(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """Outputs of one promotable pass; the working directory is elsewhere and no MLflow variable is set."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    root = tmp_path / "a workspace"
    database = root / ".promptmill" / "mlflow" / "mlflow.db"
    database.parent.mkdir(parents=True)
    shutil.copy(empty_database, database)
    write_outputs(root, 1)
    return Workspace(root)
