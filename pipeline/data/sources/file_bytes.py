"""The bytes of a file source: counted, hashed and unpacked as they are read, never more than params allow."""

import gzip
import hashlib
import io
import os
import tempfile
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

from pipeline.data.sources.limits import Caps
from pipeline.data.sources.places import opened, unreadable_url
from pipeline.data.sources.signatures import HEAD_BYTES, check_signature
from pipeline.data.sources.wording import in_one_line
from pipeline.errors import SourceError
from pipeline.params import FileSource, PackageFileSource

_PIECE = 2**20


class _Stored(io.RawIOBase):
    """The stored bytes on their way through: hashed and counted; what the place raises becomes a SourceError."""

    def __init__(self, stream: BinaryIO, where: str) -> None:
        self._stream, self._where = stream, where
        self.digest = hashlib.sha256()
        self.size = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        try:
            piece = self._stream.read(len(buffer))
        except Exception as error:  # noqa: BLE001 - each of fsspec's file systems has errors of its own
            raise unreadable_url(self._where, error) from None
        self.digest.update(piece)
        self.size += len(piece)
        buffer[: len(piece)] = piece
        return len(piece)


class _Unpacked(io.RawIOBase):
    """The unpacked bytes: counted against the cap, and what is wrong with the packing said in our words."""

    def __init__(self, stream: Any, caps: Caps, where: str, compression: str) -> None:
        self._stream, self._caps, self._where, self._compression = stream, caps, where, compression

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        filled = 0
        while filled < len(buffer) and (piece := self._read(len(buffer) - filled)):
            buffer[filled : filled + len(piece)] = piece
            filled += len(piece)
        self._caps.add_bytes(filled, self._where)
        return filled

    def _read(self, count: int) -> bytes:
        try:
            return self._stream.read(count)
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise SourceError(
                f"{self._where} cannot be unpacked as {self._compression} after {self._caps.bytes:,} bytes ({in_one_line(error)})."
                " Fetch the file again, or correct ingest.source.compression."
            ) from None


@dataclass
class FileBytes:
    """A file source, open: `stream` gives the unpacked bytes, from the start. `sha256` and `size` are known after `finish`."""

    stream: BinaryIO
    where: str
    caps: Caps
    raw: BinaryIO = field(repr=False)
    packed: bool
    _stored: _Stored = field(repr=False)
    _finished: bool = False

    def finish(self) -> None:
        """Read what is left of the stored bytes, so that hash and size cover all of them."""
        while not self._finished and self._stored.read(_PIECE):
            pass
        self._finished = True

    @property
    def sha256(self) -> str:
        """Hex sha256 of the stored bytes."""
        return self._stored.digest.hexdigest()

    @property
    def size(self) -> int:
        """Number of stored bytes."""
        return self._stored.size


@contextmanager
def open_file(source: PackageFileSource | FileSource, caps: Caps, *, root: Path) -> Generator[FileBytes]:
    """Open a file source; raises SourceError when it is not there, is empty, or shows by its first bytes that it is something else."""
    with opened(source, root=root) as (raw, where):
        stored = _Stored(raw, where)
        buffered = io.BufferedReader(stored, _PIECE)
        if source.stored_compression != "none":
            check_signature(_head(buffered), source.stored_compression, where=where, encoding=source.encoding)
        stream = io.BufferedReader(
            _Unpacked(_unpacker(buffered, source.stored_compression), caps, where, source.stored_compression), _PIECE
        )
        check_signature(_head(stream), source.stored_format, where=where, encoding=source.encoding)
        yield FileBytes(stream, where, caps, raw, source.stored_compression != "none", stored)


@contextmanager
def seekable(file: FileBytes) -> Generator[BinaryIO]:
    """The unpacked bytes, all of them hashed, for formats that are not read from front to back.

    That is the file itself where it is local and not packed, else a copy in a temporary file.
    """
    if isinstance(file.raw, io.BufferedReader) and not file.packed:
        before = _state(file.raw)
        file.finish()
        file.caps.bytes = 0  # from here on the cells count, not the file that holds them
        file.raw.seek(0)
        yield cast(BinaryIO, file.raw)
        if _state(file.raw) != before:
            raise SourceError(f"{file.where} was changed while it was read. Run the stage again when nothing writes to the file.")
        return
    with tempfile.TemporaryFile() as copy:
        while piece := file.stream.read(_PIECE):
            copy.write(piece)
        copy.seek(0)
        file.caps.bytes = 0  # as above
        yield cast(BinaryIO, copy)


def _state(file: BinaryIO) -> tuple[int, int]:
    state = os.fstat(file.fileno())
    return state.st_size, state.st_mtime_ns


def _head(stream: "io.BufferedReader[Any]") -> bytes:
    """The first bytes, without taking them from the stream."""
    return stream.peek(HEAD_BYTES)[:HEAD_BYTES]


def _unpacker(stream: BinaryIO, compression: str) -> Any:
    if compression == "gzip":
        return gzip.GzipFile(fileobj=stream)
    if compression == "zstd":
        import pyarrow as pa

        return pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), "zstd")
    return stream
