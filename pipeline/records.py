"""Reading and writing the files that stages exchange: JSON, JSON lines, Parquet and folders.

Everything is written to a temporary name beside its destination and renamed when complete, so that a file
under its final name is always whole, whatever kills the writer. What a killed writer leaves is `.<name>.<random>.partial`.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from pipeline.errors import StageInputError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

CHECKSUM_SUFFIX = ".sha256"

_CHECKSUM_LINE = re.compile(rb"([0-9a-f]{64})  ([^\n]+)\n")
_REPAIR = "Run `promptmill data repair TASK` for its task, which removes altered copies, then `promptmill run TASK`, which makes it again."


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing_file(path: Path) -> Generator[Path]:
    """Yield a temporary path in the same folder; on success it is synced to disk and renamed to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes private files; outputs get the user's usual mode
        _fsync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Generator[Path]:
    """Yield an empty temporary folder beside `path`; on success it takes the place of `path`.

    A folder cannot be renamed over another, so the old one is first renamed aside: a writer killed in that moment
    leaves nothing under the final name, never a mixture.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
    old = temporary.with_suffix(".old.partial")
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)
        for file in temporary.rglob("*"):
            if file.is_file():
                _fsync(file)
        if path.exists():
            path.replace(old)
        temporary.replace(path)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record as strict JSON (NaN and Infinity are refused with ValueError), keys in the given order."""
    with replacing_file(path) as temporary:
        temporary.write_text(_dumps(record, path, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; raises StageInputError when the file is missing or is not one."""
    return _loads(_read_text(path), str(path))


def write_jsonl(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write one strict JSON object per line (NaN and Infinity are refused with ValueError)."""
    with replacing_file(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        for record in records:
            stream.write(_dumps(record, path) + "\n")


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read a file of one JSON object per line; raises StageInputError naming the line."""
    lines = _read_text(path).removesuffix("\n").split("\n")  # splitlines() would also cut at U+2028 inside a text
    return [_loads(line, f"{path}, line {number}") for number, line in enumerate(lines, 1)] if lines != [""] else []


def write_parquet(path: Path, frame: "pd.DataFrame") -> None:
    """Write a frame as Parquet (zstd), without its index, and its checksum beside it."""
    with _checksummed(path) as temporary:
        frame.to_parquet(temporary, index=False, compression="zstd")


@contextmanager
def parquet_writer(path: Path, schema: "pa.Schema") -> Generator["pq.ParquetWriter"]:
    """Yield a pyarrow writer for batches of `schema`; when the block ends well, the file and its checksum get their names.

    Each `write_batch` or `write_table` makes at least one row group, so give it 10,000 rows or more at a time.
    """
    import pyarrow.parquet as pq

    with _checksummed(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        yield writer


def read_parquet(path: Path, columns: Iterable[str] = ()) -> "pd.DataFrame":
    """Read all columns of a Parquet file written by a stage, once its bytes are those that were written.

    Raises StageInputError when it is missing, altered or lacks `columns`.
    """
    import pandas as pd

    with _verified(path) as stream, _readable(path):
        frame = pd.read_parquet(stream)
        _check_columns(path, list(frame.columns), columns)
        return frame


def iterate_parquet(
    path: Path, columns: Iterable[str] = (), batch_rows: int = 65_536, *, sha256: str | None = None
) -> Iterator["pa.RecordBatch"]:
    """Yield the rows of a Parquet file written by a stage as batches of at most `batch_rows` rows, of `columns` only (none: all).

    The whole file is verified before the first batch, against `sha256` where the file lies without its checksum, as in DVC's
    cache; what is raised is as in `read_parquet`.
    """
    import pyarrow.parquet as pq

    wanted = list(columns)
    with _verified(path, sha256) as stream, _readable(path), pq.ParquetFile(stream) as file:
        _check_columns(path, file.schema_arrow.names, wanted)
        yield from file.iter_batches(batch_rows, columns=wanted or None)


def parquet_schema(path: Path) -> "pa.Schema":
    """The columns of a Parquet file written by a stage and their types; what is raised is as in `read_parquet`."""
    import pyarrow.parquet as pq

    with _verified(path) as stream, _readable(path), pq.ParquetFile(stream) as file:
        return file.schema_arrow


def checksum_file(path: Path) -> Path:
    """Where the checksum of a Parquet file lies: beside it, in the form that `sha256sum --check` reads."""
    return path.with_name(path.name + CHECKSUM_SUFFIX)


def remove_parquet(path: Path) -> None:
    """Remove a Parquet file and its checksum, where they are."""
    path.unlink(missing_ok=True)
    checksum_file(path).unlink(missing_ok=True)


def verify_parquet(path: Path) -> str:
    """The sha256 of a Parquet file, once it is the one in its checksum file; raises StageInputError when it is not."""
    with _verified(path):
        return _recorded_sha256(path)


@contextmanager
def _checksummed(path: Path) -> Generator[Path]:
    """`replacing_file` for a file with a checksum beside it, both complete on disk before either gets its name.

    A writer killed between the two renames leaves the new file with the old checksum or none, which every reader refuses.
    """
    checksum = checksum_file(path)
    with replacing_file(checksum) as temporary_checksum, replacing_file(path) as temporary:
        yield temporary
        temporary_checksum.write_text(f"{sha256_file(temporary)}  {path.name}\n", encoding="utf-8")


@contextmanager
def _verified(path: Path, sha256: str | None = None) -> Generator[BinaryIO]:
    """The file, open at its start, once the bytes behind this very handle have the recorded sha256, or the given one."""
    if not path.is_file():
        raise StageInputError(f"{path} does not exist. Run the stage that writes it: `dvc repro`.")
    expected = sha256 or _recorded_sha256(path)
    try:
        stream = path.open("rb")
    except OSError as error:
        raise StageInputError(f"{path} cannot be read ({error.strerror}). {_REPAIR}") from error
    with stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != expected:
            raise StageInputError(f"{path} was altered: its sha256 is {found}, written was {expected}. {_REPAIR}")
        stream.seek(0)
        yield stream


def _recorded_sha256(path: Path) -> str:
    checksum = checksum_file(path)
    try:
        content = checksum.read_bytes()
    except OSError as error:
        raise StageInputError(f"{path} cannot be trusted: {checksum.name} cannot be read ({error.strerror}). {_REPAIR}") from None
    match = _CHECKSUM_LINE.fullmatch(content)
    if match is None or match[2] != os.fsencode(path.name):
        raise StageInputError(
            f"{path} cannot be trusted: {checksum.name} holds {content[:120]!r}, expected one line of a sha256, two spaces and {path.name}. {_REPAIR}"
        )
    return match[1].decode()


@contextmanager
def _readable(path: Path) -> Generator[None]:
    """Name the file in what pyarrow raises: bytes as they were written, which it still cannot read."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise StageInputError(f"{path} is not a readable Parquet file ({error}). Run the stage that writes it again.") from error


def _check_columns(path: Path, present: list[str], wanted: Iterable[str]) -> None:
    missing = [name for name in wanted if name not in present]
    if missing:
        raise StageInputError(f"{path} lacks the columns {missing}; it has {present}. Run the stage that writes it again.")


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Hex sha256 of a value's canonical JSON (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise StageInputError(f"{path} does not exist. Run the stage that writes it: `dvc repro`.") from None
    except OSError as error:
        raise StageInputError(f"{path} cannot be read ({error.strerror}). Delete it and run `dvc repro`.") from error
    except UnicodeDecodeError as error:
        raise StageInputError(f"{path} is not UTF-8 at byte {error.start}. Delete it and run `dvc repro`.") from error


def _dumps(record: Mapping[str, Any], path: Path, indent: int | None = None) -> str:
    try:
        return json.dumps(record, ensure_ascii=False, indent=indent, allow_nan=False)
    except ValueError as error:
        raise ValueError(f"{path} was not written: {error}. A figure that cannot be computed is null with a reason.") from error


def _loads(text: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        problem = f"line {error.lineno}, column {error.colno}: {error.msg}"
        raise StageInputError(f"{where} is not JSON ({problem}). Delete it and run `dvc repro`.") from error
    except (ValueError, RecursionError) as error:
        raise StageInputError(f"{where} is not strict JSON ({error}). Delete it and run `dvc repro`.") from error
    if not isinstance(record, dict):
        raise StageInputError(f"{where} holds {type(record).__name__}, expected a JSON object. Run the stage that writes it again.")
    return cast(dict[str, Any], record)


def _refuse_constant(name: str) -> None:
    """NaN and Infinity are no JSON, though Python's parser takes them; a NaN must never reach a comparison of the gate."""
    raise ValueError(f"{name} is no JSON value")
