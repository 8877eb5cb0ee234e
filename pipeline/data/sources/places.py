"""Where a file source lies: inside an installed package, on this machine, or behind a URL that fsspec opens."""

import hashlib
import importlib.util
import re
from collections.abc import Generator
from contextlib import contextmanager
from http import HTTPStatus
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, cast

from pipeline.data.sources.wording import in_one_line
from pipeline.errors import SourceError
from pipeline.params import FileSource, PackageFileSource
from pipeline.records import checksum_file

_RECORDED = re.compile(rb"\\?([0-9a-fA-F]{64})(?:\s.*)?", re.DOTALL)
EXTRAS = {"s3": "s3", "s3a": "s3"}  # protocol -> our extra that brings what fsspec needs for it


def describe(source: PackageFileSource | FileSource) -> str:
    """The source in words for the ingest report, without the query of a URL, which may hold a signature."""
    inside = f" in the package {source.package}" if isinstance(source, PackageFileSource) else ""
    text = f" ({source.encoding})" if source.stored_format in ("csv", "tsv", "jsonl") else ""
    return f"{public_path(source.path)}{inside}{text}"


def public_path(path: str) -> str:
    """A path as it is; a URL without its query."""
    return path.split("?")[0] if "://" in path else path


@contextmanager
def opened(source: PackageFileSource | FileSource, *, root: Path) -> Generator[tuple[BinaryIO, str]]:
    """Yield (the file's bytes from its start, its name in errors).

    Raises SourceError when there is no such file, or when it is not the one whose sha256 stands in a file `<name>.sha256` beside it.
    """
    if "://" in source.path and isinstance(source, FileSource):
        with _open_url(source.path) as stream:
            yield stream, public_path(source.path)
        return
    path = locate(source, root=root)
    try:
        stream = path.open("rb")
    except OSError as error:
        raise SourceError(f"{path} cannot be read ({error.strerror}). Check its permissions.") from error
    with stream:
        if isinstance(source, FileSource) and checksum_file(path).is_file():
            _verify(stream, path)
        yield stream, str(path)


# --- on this machine --------------------------------------------------------------------------------------------------


def locate(source: PackageFileSource | FileSource, *, root: Path) -> Path:
    """The path of a local source. A package is looked up, not imported: importing it runs its code, which may not even work."""
    folder = root if isinstance(source, FileSource) else _package_folder(source.package, source.path)
    path = folder / source.path
    if path.is_dir():
        raise SourceError(f"{path} is a folder, expected a file of rows. Set ingest.source.path to a file inside it.")
    if not path.exists():
        raise SourceError(f"{path} does not exist. Correct ingest.source.path ({source.path!r}), or put the file there.")
    if not path.is_file():
        raise SourceError(
            f"{path} is a device, pipe or socket, expected a file of rows. Store the rows in a file and name it in ingest.source.path."
        )
    return path


def _verify(stream: BufferedReader, path: Path) -> None:
    """Compare the bytes with their checksum, as `sha256sum` writes it, and go back to their start."""
    checksum = checksum_file(path)
    match = _RECORDED.fullmatch(checksum.read_bytes())
    if match is None:
        raise SourceError(
            f"{checksum} does not begin with a sha256, so {path} cannot be verified. Write it with `sha256sum`, or delete it."
        )
    found, recorded = hashlib.file_digest(stream, "sha256").hexdigest(), match[1].decode().lower()
    if found != recorded:
        raise SourceError(
            f"{path} was altered: its sha256 is {found}, recorded beside it is {recorded}. If the change is meant, `promptmill data refresh TASK` "
            f"accepts it. If not, put the file back: `promptmill data repair TASK` says how when DVC versions it."
        )
    stream.seek(0)


def _package_folder(package: str, path: str) -> Path:
    """The folder of an installed package that holds `path`, or its first folder when none does."""
    # find_spec of a dotted name would import the parents, so only the first part is looked up.
    top, *below = package.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        raise SourceError(
            f"The package {package!r} is not installed in this Python. Install what provides it (`pip install {top}`) or correct ingest.source.package."
        )
    folders = [Path(folder, *below) for folder in spec.submodule_search_locations or ()]
    if not folders:
        raise SourceError(f"{package!r} is a single module, so it holds no files. Set ingest.source.package to a package (a folder).")
    return next((folder for folder in folders if (folder / path).exists()), folders[0])


# --- behind a URL -----------------------------------------------------------------------------------------------------


@contextmanager
def _open_url(url: str) -> Generator[BinaryIO]:
    import fsspec

    name = public_path(url)
    try:
        filesystem, path = fsspec.url_to_fs(url)
    except ImportError as error:
        extra = EXTRAS.get(url.split("://")[0])
        fix = f"Install promptmill with it: `pip install promptmill[{extra}]`" if extra else "Install the package it names"
        raise SourceError(f"{name}: fsspec lacks what opens such a URL ({in_one_line(error)}). {fix}.") from None
    except Exception as error:  # noqa: BLE001 - each of fsspec's file systems has errors of its own
        raise SourceError(f"{name} is no URL that fsspec can open ({in_one_line(error)}). Correct ingest.source.path.") from None
    try:
        if filesystem.isdir(path) and not filesystem.isfile(path):
            raise SourceError(f"{name} is a folder, expected a file of rows. Set ingest.source.path to a file inside it.")
        stream = filesystem.open(path, "rb")
    except SourceError:
        raise
    except FileNotFoundError as error:
        if _is_no_absence(error.__cause__):
            raise unreadable_url(name, cast(Exception, error.__cause__)) from None
        raise SourceError(f"{name} does not exist. Correct ingest.source.path, or put the file there.") from None
    except Exception as error:  # noqa: BLE001 - as above
        raise unreadable_url(name, error) from None
    with stream:
        yield cast(BinaryIO, stream)


def _is_no_absence(cause: BaseException | None) -> bool:
    """Whether fsspec calls something else a missing file: over http(s) it does so for a certificate, a refusal or a broken server too."""
    status = getattr(cause, "status", None)
    broken = isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError)
    return broken or (isinstance(status, int) and status not in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE))


def unreadable_url(name: str, error: Exception) -> SourceError:
    """What to tell when a URL's bytes cannot be had."""
    return SourceError(
        f"{name} cannot be read ({type(error).__name__}: {in_one_line(error)}). Check the address, the network and the credentials in the environment."
    )
