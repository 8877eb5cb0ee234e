"""A Prefect server for the session, and a real tuned prompt bundle on a tiny base model."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.flows.data_workspace import commit, make_data_checkout, stages_find_their_code
from tests.flows.flow_workspace import call

if TYPE_CHECKING:
    from pipeline.engine.predicting import Predictor


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """Prefect's own test harness, without the heartbeat thread that costs a second at the end of each flow run."""
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120), temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`make_tiny_bundle`'s."""
    from tests.flows.tiny_bundle import make_tiny_bundle

    return make_tiny_bundle(tmp_path_factory.mktemp("model"), tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="session")
def tiny_text_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for answers in free text of up to three tokens."""
    from tests.flows.tiny_bundle import make_tiny_bundle

    return make_tiny_bundle(tmp_path_factory.mktemp("model"), tmp_path_factory.mktemp("bundle"), labels=())


@pytest.fixture(scope="session")
def made_data_checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout of `data_workspace` in which both stages have run once, committed to git."""
    root = make_data_checkout(tmp_path_factory.mktemp("made") / "checkout")
    with pytest.MonkeyPatch.context() as patch:
        stages_find_their_code(patch)
        call(sys.executable, "-m", "dvc", "repro", "--quiet", folder=root)
    commit(root, "first")
    return root


@pytest.fixture
def data_checkout(made_data_checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that checkout, in which the test then works."""
    stages_find_their_code(monkeypatch)
    root = tmp_path / "checkout"
    shutil.copytree(made_data_checkout, root)
    monkeypatch.chdir(root)
    return root


@pytest.fixture(scope="session")
def tiny_predictor(tiny_bundle: Path) -> "Predictor":
    from pipeline.engine.predicting import load_predictor

    return load_predictor(tiny_bundle, device="cpu")
