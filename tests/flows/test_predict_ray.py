"""Answers of a real Ray cluster on this machine: the rows, the order, the values and the errors of the local engine."""

import shutil
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.predict import answer_file
from pipeline import ray_answering
from pipeline.answering import Pairs, answers_here
from pipeline.errors import ClusterError, SourceError
from pipeline.ray_answering import answers_on_ray, ray_cluster
from pipeline.row_files import ROWS_AT_ONCE, open_rows
from tests.flows.flow_workspace import environment
from tests.registry.registry_workspace import LABELS, TASK

# Ray Data 2.60 gives values to settings that it deprecates itself.
pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")

ALTERED = """\
import sys
from pathlib import Path
from pipeline.errors import BundleError
from pipeline.ray_answering import answers_on_ray
from pipeline.row_files import open_rows
with open_rows(Path(sys.argv[1])) as rows, answers_on_ray(rows, Path(sys.argv[2]), ["text"], actors=1) as pairs:
    try:
        next(pairs)
    except BundleError as error:
        print(error)
"""


def texts(count: int) -> list[str]:
    return [f"{'late again ' * (number % 7)}and my bag is lost at gate {number}" for number in range(count)]


def write(path: Path, held: list[str]) -> Path:
    pq.write_table(pa.table({"id": range(len(held)), "text": held}), path, row_group_size=700)
    return path


def children() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def until_it_stops(engine: AbstractContextManager[Pairs]) -> tuple[list[str], str]:
    """The written answers until a row was refused, and what was said of it."""
    answers: list[str] = []
    try:
        with engine as pairs:
            for _, answered in pairs:
                answers += answered.column("answer").to_pylist()
    except SourceError as error:
        return answers, str(error)
    raise AssertionError("no row was refused")


@pytest.fixture(scope="module")
def own_cluster() -> Iterator[set[psutil.Process]]:
    """A cluster of our own on loopback; the processes that were there before. Those that it started must be gone afterwards."""
    before = children()
    with ray_cluster(2):
        yield before
        started = children() - before
    _, alive = psutil.wait_procs(started, timeout=30)
    assert alive == []
    assert len(started) > 2


def test_two_actors_answer_a_file_as_one_process_does(own_cluster: set[psutil.Process], tiny_bundle: Path, tmp_path: Path) -> None:
    held = texts(2 * ROWS_AT_ONCE + 100)
    found: dict[str, pa.Table] = {}
    with open_rows(write(tmp_path / "in.parquet", held)) as rows:
        for engine in ("local", "ray"):
            options = Namespace(task=TASK, out=tmp_path / f"{engine}.parquet", engine=engine, actors=2)
            answer_file(options, rows, 1, tiny_bundle, ["text"], LABELS)
            found[engine] = pq.read_table(options.out)
    assert found["ray"]["id"].to_pylist() == list(range(len(held)))
    assert found["ray"]["text"].to_pylist() == held
    assert found["ray"].column_names == ["id", "text", "label", *(f"p.{label}" for label in LABELS)]
    assert found["ray"].equals(found["local"])

    connections = [connection for process in children() - own_cluster for connection in process.net_connections("inet")]
    listening = {connection.laddr.ip for connection in connections if connection.status == psutil.CONN_LISTEN}
    assert listening
    assert listening <= {"127.0.0.1", "::ffff:127.0.0.1"}


@pytest.mark.usefixtures("own_cluster")
def test_text_is_written_and_a_bad_row_told_as_without_ray(tiny_text_bundle: Path, tmp_path: Path) -> None:
    with open_rows(write(tmp_path / "in.parquet", [*texts(20), " ", "late"])) as rows:
        here = until_it_stops(answers_here(rows, tiny_text_bundle, ["text"], rows_at_once=8))
        there = until_it_stops(answers_on_ray(rows, tiny_text_bundle, ["text"], actors=1, rows_at_once=8))
    assert here == there
    assert len(here[0]) == 16
    assert any(here[0])
    assert here[1] == f"{tmp_path}/in.parquet, row 21, column 'text' is empty. Fill or remove that row."


@pytest.mark.usefixtures("own_cluster")
def test_the_cluster_of_ray_address_is_used_and_verifies_the_bundle(tiny_bundle: Path, tmp_path: Path) -> None:
    import ray

    altered = shutil.copytree(tiny_bundle, tmp_path / "altered")
    (altered / "template.json").write_text("{}", encoding="utf-8")
    command = [sys.executable, "-c", ALTERED, str(write(tmp_path / "in.parquet", ["late"])), str(altered)]
    surroundings = {**environment(), "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    done = subprocess.run(command, env=surroundings, capture_output=True, text=True, check=False, timeout=300)
    assert "template.json" in done.stdout, done.stderr
    assert ray.is_initialized()


@pytest.mark.usefixtures("own_cluster")
def test_more_actors_than_processors_are_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    with (
        open_rows(write(tmp_path / "in.parquet", ["late"])) as rows,
        pytest.raises(ClusterError, match=r"4096 actors need as many processors, the Ray cluster has \d+\. Ask for fewer \(--actors\)"),
        answers_on_ray(rows, tiny_bundle, ["text"], actors=4096),
    ):
        pass


def test_without_ray_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ClusterError, match=r"not installed. Run `pip install promptmill\[ray\]`"), ray_cluster(1):
        pass


def test_what_ray_raises_becomes_one_line() -> None:
    def broken() -> Iterator[dict[str, Any]]:
        raise MemoryError("Task failed.\n\nsome trace\nValueError: no room left\n")
        yield {}

    with pytest.raises(ClusterError, match=r"^Ray gave up \(ValueError: no room left\)\. Nothing was written\.") as stopped:
        ray_answering._next(broken())
    assert "\n" not in str(stopped.value)
