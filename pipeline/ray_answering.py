"""The rows of a file answered by actors of a Ray cluster: Ray's one home. It is an extra, imported only when asked for.

One task reads the file on this machine, batch by batch as the local engine does; every actor loads the verified bundle once and answers
whole batches, so a row has the same batch mates, and on the same hardware and threads the same bits, as without Ray. What passes through
the cluster is one row for each batch, Arrow in a binary cell: so Ray Data cannot cut or join what belongs together. It holds the reader
back while the actors are busy, and keeps the order, which is checked.
"""

import math
import os
import secrets
import signal
import tempfile
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline import errors
from pipeline.answering import Pairs, answer_batch, load_answer
from pipeline.errors import ClusterError, PromptmillError
from pipeline.manifest import verify_bundle
from pipeline.row_files import ROWS_AT_ONCE, RowFile

ADDRESS_VARIABLE = "RAY_ADDRESS"
LOOPBACK = "127.0.0.1"
STORE_BYTES = 256 * 2**20  # of a cluster of our own: the batches on their way
LONGEST_FOLDER = 40  # characters; Ray makes sockets below it, whose whole path may have 107 bytes

# Read when ray is imported, and by the processes it starts. What the user set stays.
ALWAYS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DATA_LOG_LEVEL": "ERROR", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
OWN_CLUSTER = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # the one switch that makes Ray listen on loopback alone
    "RAY_AUTH_MODE": "token",  # other users of this machine can connect to loopback too
    "RAY_worker_niceness": "0",  # the priority of the command, where Ray would run the actors behind everything else
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}

PARCEL = pa.schema(
    [
        *(("number", pa.int64()), ("first_row", pa.int64())),
        *(("rows", pa.binary()), ("answers", pa.binary())),  # Arrow
        *(("error", pa.string()), ("message", pa.string())),  # class and text of what stopped the work
    ]
)


@contextmanager
def answers_on_ray(
    rows: RowFile, bundle: Path, fields: Sequence[str], *, actors: int, rows_at_once: int = ROWS_AT_ONCE
) -> Generator[Pairs]:
    """Yield the batches of `rows` in their order, each with its answers, computed by `actors` actors.

    They run in the cluster of RAY_ADDRESS, or in one of our own on loopback that ends with the block. Raises ClusterError when Ray is
    not installed, does not start or gives up; what goes wrong with a batch where it is answered is raised here, as by the local engine.
    """
    with ray_cluster(actors) as threads:
        files = {path.relative_to(bundle).as_posix(): path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
        actor = (rows, files, list(fields))
        yield _in_order(_dataset(rows, rows_at_once, actor, actors, threads))


@contextmanager
def ray_cluster(actors: int) -> Generator[int]:
    """Connect this process to Ray for the length of the block and yield how many processors each of `actors` actors is meant to have.

    A process that is connected already stays so, before and behind the block.
    """
    address = os.environ.get(ADDRESS_VARIABLE)
    for name, value in (ALWAYS if address else {**ALWAYS, **OWN_CLUSTER, "RAY_AUTH_TOKEN": secrets.token_hex(32)}).items():
        os.environ.setdefault(name, value)
    ray = _import_ray()
    if ray.is_initialized():
        yield 1
    elif address:
        if address.startswith("ray://"):
            raise ClusterError(
                f"{ADDRESS_VARIABLE} is {address!r}, the address of a Ray client. Run promptmill on a machine of the cluster."
            )
        with _connected(ray, address=address):
            yield 1
    else:
        threads = max(1, len(os.sched_getaffinity(0)) // actors)
        with tempfile.TemporaryDirectory(prefix="ray-", dir=_short_folder(), ignore_cleanup_errors=True) as folder:
            own: dict[str, Any] = {"num_cpus": threads * actors + 1, "object_store_memory": STORE_BYTES, "include_dashboard": False}
            with _connected(ray, address="local", _temp_dir=folder, _node_ip_address=LOOPBACK, **own) as found:
                if found != LOOPBACK:
                    raise ClusterError(
                        f"Ray listens on {found}, expected {LOOPBACK}. Unset RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER and try again."
                    )
                yield threads


class BundleActor:
    """Answers batches by the bundle that it loaded when it was made; what is wrong with that is told when the first batch comes."""

    def __init__(self, rows: RowFile, files: Mapping[str, bytes], fields: Sequence[str]) -> None:
        self._rows, self._fields, self._error = rows, fields, None
        try:
            with tempfile.TemporaryDirectory() as folder:
                for name, content in files.items():
                    (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
                    (Path(folder) / name).write_bytes(content)
                verify_bundle(Path(folder))
                self._answer = load_answer(Path(folder))
        except PromptmillError as error:
            self._error = error

    def __call__(self, parcel: pa.Table) -> pa.Table:
        """The parcel of one batch, with its answers or what stopped them."""
        (held,) = parcel.to_pylist()
        if held["error"]:
            return parcel
        try:
            if self._error:
                raise self._error
            answers = answer_batch(self._answer, self._rows, _unpacked(held["rows"]), self._fields, held["first_row"])
        except PromptmillError as error:
            return _parcel(**{**held, **_told(error)})
        return _parcel(**{**held, "answers": _packed(answers)})


def _dataset(rows: RowFile, rows_at_once: int, actor: tuple[Any, ...], actors: int, threads: int) -> Any:
    """The parcels with their answers, once somebody asks for them; `actor` are the arguments of each BundleActor."""
    ray = _import_ray()
    import ray.data as ray_data

    cluster: Mapping[str, float] = ray.cluster_resources()
    if cluster.get("CPU", 0) < actors * threads:
        raise ClusterError(
            f"{actors} actors need as many processors, the Ray cluster has {cluster.get('CPU', 0):g}. Ask for fewer (--actors)."
        )
    context = ray_data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    context.target_max_block_size = 1  # bytes, so every parcel is a block of its own and goes to the next free actor
    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}

    def read(_: pa.Table) -> Iterator[pa.Table]:
        yield from _parcels(rows, rows_at_once)

    start: Any = ray_data.from_items([0], override_num_blocks=1)
    return start.map_batches(read, batch_size=None, batch_format="pyarrow", num_cpus=0, label_selector=here).map_batches(
        BundleActor,
        fn_constructor_args=actor,
        batch_size=1,
        batch_format="pyarrow",
        compute=ray_data.ActorPoolStrategy(size=actors),
        num_cpus=threads,
        num_gpus=1 / math.ceil(actors / cluster["GPU"]) if cluster.get("GPU") else None,
    )


def _parcels(rows: RowFile, rows_at_once: int) -> Iterator[pa.Table]:
    """A parcel for each batch of the file, and one for what is wrong with the file."""
    number, first_row = 0, 1
    try:
        for batch in rows.batches(rows_at_once):
            yield _parcel(number=number, first_row=first_row, rows=_packed(batch))
            number, first_row = number + 1, first_row + batch.num_rows
    except PromptmillError as error:
        yield _parcel(number=number, first_row=first_row, **_told(error))


def _in_order(dataset: Any) -> Pairs:
    parcels: Iterator[Mapping[str, Any]] = iter(dataset.iter_rows())
    expected = 0
    while (held := _next(parcels)) is not None:
        if held["error"]:
            raise getattr(errors, held["error"])(held["message"])
        if held["number"] != expected:
            raise ClusterError(
                f"Ray handed out batch {held['number']} where batch {expected} was due. Use --engine local, and report this."
            )
        expected += 1
        yield _unpacked(held["rows"]), _unpacked(held["answers"])


def _next(parcels: Iterator[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    try:
        return next(parcels, None)
    except Exception as error:  # what Ray and Ray Data raise has no base of its own
        last = next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
        raise ClusterError(f"Ray gave up ({last[:300]}). Nothing was written. Run it again, or with --engine local.") from error


@contextmanager
def _connected(ray: Any, **options: Any) -> Generator[str]:
    """A connection to Ray; yields the address that this machine has in the cluster."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        try:
            found = ray.init(log_to_driver=False, logging_level="ERROR", **options)
        except (ConnectionError, RuntimeError, OSError, ValueError) as error:
            raise ClusterError(f"Ray at {options['address']!r} cannot be used ({' '.join(str(error).split())[:300]}).") from error
        if threading.current_thread() is threading.main_thread() and handler is not None:
            signal.signal(signal.SIGTERM, handler)  # Ray's own would end the process with another exit code and half of the cleaning
        yield found.address_info["node_ip_address"]
    finally:
        ray.shutdown()


def _import_ray() -> Any:
    try:
        import ray
    except ImportError:
        raise ClusterError(
            "--engine ray needs Ray, which is not installed. Run `pip install promptmill[ray]`, or use --engine local."
        ) from None
    return ray


def _short_folder() -> str | None:
    return None if len(tempfile.gettempdir()) <= LONGEST_FOLDER else "/tmp"


def _parcel(**values: Any) -> pa.Table:
    return pa.Table.from_pylist([values], schema=PARCEL)


def _told(error: PromptmillError) -> dict[str, str]:
    return {"error": type(error).__name__, "message": str(error)}


def _packed(batch: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    return sink.getvalue().to_pybytes()


def _unpacked(content: bytes) -> pa.RecordBatch:
    with pa.ipc.open_stream(content) as stream:
        return stream.read_next_batch()
