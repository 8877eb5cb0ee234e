"""Reading and writing the files that stages exchange: JSON, JSON lines, Parquet and folders.

Everything is written to a temporary name beside its destination and renamed when complete, so that a file
under its final name is always whole, whatever kills the writer. What a killed writer leaves is `.<name>.<random>.partial`.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pipeline.errors import StageInputError

if TYPE_CHECKING:
    import pandas as pd


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
    """Write a frame as Parquet (zstd), without its index."""
    with replacing_file(path) as temporary:
        frame.to_parquet(temporary, index=False, compression="zstd")


def read_parquet(path: Path, columns: Iterable[str] = ()) -> "pd.DataFrame":
    """Read a Parquet file written by a stage; raises StageInputError when it is missing, broken or lacks `columns`."""
    import pandas as pd

    if not path.is_file():
        raise StageInputError(f"{path} does not exist. Run the stage that writes it: `dvc repro`.")
    try:
        frame = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise StageInputError(f"{path} is not a readable Parquet file ({error}). Delete it and run `dvc repro`.") from error
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        raise StageInputError(f"{path} lacks the columns {missing}; it has {list(frame.columns)}. Run the stage that writes it again.")
    return frame


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
