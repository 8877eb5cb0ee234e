"""The data profile of a version, from a real store and back; and what is refused on the way."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.profiles import ARRAYS_FILE, RECORD_FILE, read_profile, read_reference
from pipeline.errors import RegistryError
from pipeline.registry import promotion
from pipeline.registry.connection import connect
from pipeline.registry.reference import champion_version, fetch_reference
from pipeline.registry.tracking import DATA_PROFILE_SHA256
from tests.registry.registry_workspace import TASK, Workspace, write_outputs


@pytest.fixture
def fetched(tmp_path: Path) -> Path:
    folder = tmp_path / "fetched"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def champion(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace with a champion, version 1; each test leaves its store as it was."""
    made = Workspace(tmp_path_factory.mktemp("champion"))
    database = made.root / ".promptmill" / "mlflow" / "mlflow.db"
    database.parent.mkdir(parents=True)
    shutil.copy(empty_database, database)
    write_outputs(made.root, 1)
    promotion.promote(root=made.root, task=TASK, version=made.register())
    return made


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def stored_profile(workspace: Workspace) -> Path:
    """The folder in which MLflow keeps the profile of the first run."""
    return min(workspace.artifacts.rglob(f"profile/{RECORD_FILE}"), key=lambda path: path.stat().st_mtime_ns).parent


def test_the_champions_profile_comes_back_as_it_was_recorded(champion: Workspace, fetched: Path):
    said = fetch_reference(root=champion.root, task=TASK, against="champion", destination=fetched)
    assert (said["asked"], said["version"], said["reason"]) == ("champion", 1, None)
    _, found = read_reference(fetched)
    expected = read_profile(record=champion.layout.path("data_profile"), arrays=champion.layout.path("profile_arrays"))
    assert found is not None
    assert (found.rows, found.labels) == (expected.rows, expected.labels)
    np.testing.assert_array_equal(found.points, expected.points)
    run = connect(root=champion.root).client.get_run(champion.record().run_id).data
    assert run.metrics["drift/failed"] == 0
    assert len(run.tags[DATA_PROFILE_SHA256]) == 64


@pytest.mark.parametrize("registered", [False, True])
def test_without_a_champion_there_is_no_reference(workspace: Workspace, fetched: Path, registered: bool):
    if registered:
        workspace.register()
    said = fetch_reference(root=workspace.root, task=TASK, against="champion", destination=fetched)
    assert said == {"asked": "champion", "version": None, "reason": "no champion yet"}
    assert read_reference(fetched)[1] is None
    assert champion_version(root=workspace.root, task=TASK) is None


def test_without_any_store_there_is_no_reference_and_none_is_made(tmp_path: Path, fetched: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    root = tmp_path / "empty"
    assert fetch_reference(root=root, task=TASK, against="champion", destination=fetched)["reason"] == "no champion yet"
    assert champion_version(root=root, task=TASK) is None
    assert not root.exists()
    with pytest.raises(RegistryError, match="nothing has been registered"):
        fetch_reference(root=root, task=TASK, against=3, destination=fetched)


def test_a_server_that_does_not_answer_is_an_error_and_not_the_absence_of_a_champion(
    workspace: Workspace, fetched: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(RegistryError, match="does not answer"):
        fetch_reference(root=workspace.root, task=TASK, against="champion", destination=fetched)


def test_an_unknown_version_is_an_error(champion: Workspace, fetched: Path):
    with pytest.raises(RegistryError, match=f"{TASK} has no version 7"):
        fetch_reference(root=champion.root, task=TASK, against=7, destination=fetched)


def test_a_version_that_was_recorded_without_a_profile_says_so(champion: Workspace, fetched: Path):
    client, run_id = connect(root=champion.root).client, champion.record().run_id
    tag = client.get_run(run_id).data.tags[DATA_PROFILE_SHA256]
    client.delete_tag(run_id, DATA_PROFILE_SHA256)
    try:
        said = fetch_reference(root=champion.root, task=TASK, against="champion", destination=fetched)
    finally:
        client.set_tag(run_id, DATA_PROFILE_SHA256, tag)
    assert said["version"] is None
    assert said["reason"] == "version 1 was recorded without a data profile"


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "record": (lambda folder: flip(folder / RECORD_FILE), rf"{RECORD_FILE} of {TASK} version 1 has sha256 .*altered in the store"),
    "arrays": (lambda folder: flip(folder / f"{TASK}.safetensors"), rf"data profile of {TASK} version 1 .*{ARRAYS_FILE} has sha256"),
    "missing": (lambda folder: (folder / f"{TASK}.safetensors").unlink(), f"Fetching the data profile of {TASK}"),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_a_profile_that_was_altered_in_the_store_is_refused_by_name(champion: Workspace, fetched: Path, what: str):
    damage, expected = DAMAGES[what]
    folder = stored_profile(champion)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    damage(folder)
    try:
        with pytest.raises(RegistryError, match=expected):
            fetch_reference(root=champion.root, task=TASK, against="champion", destination=fetched)
    finally:
        for path, content in before.items():
            path.write_bytes(content)


def test_a_version_can_be_named(champion: Workspace, fetched: Path):
    champion.make(2)
    champion.register()
    assert fetch_reference(root=champion.root, task=TASK, against=2, destination=fetched)["version"] == 2
    number, key = champion_version(root=champion.root, task=TASK) or (None, None)
    assert number == 1
    assert key != champion.record().stage_key
