"""What a file is by its first bytes, so that a spreadsheet saved as .csv or a web page saved as a data set is refused by its name."""

import codecs

from pipeline.errors import SourceError

HEAD_BYTES = 1024

# Name -> (offset, bytes) pairs that mark it; https://www.garykessler.net/library/file_sigs.html and each format's specification.
_FORMATS = {
    "parquet": ("a Parquet file", [(0, b"PAR1")]),
    "arrow": ("an Arrow file", [(0, b"ARROW1"), (0, b"\xff\xff\xff\xff")]),
    "gzip": ("gzip data", [(0, b"\x1f\x8b")]),
    "zstd": ("zstd data", [(0, b"\x28\xb5\x2f\xfd")]),
}
_FOREIGN = [
    ("an encrypted Parquet file", [(0, b"PARE")]),
    ("a Feather file of version 1", [(0, b"FEA1")]),
    ("a zip archive (an Excel workbook is one)", [(0, b"PK\x03\x04"), (0, b"PK\x05\x06")]),
    ("an old Microsoft Office file", [(0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1")]),
    ("a PDF", [(0, b"%PDF-")]),
    ("a PostScript file", [(0, b"%!PS")]),
    ("an RTF file", [(0, b"{\\rtf")]),
    ("a pickle", [(0, b"\x80" + bytes([version]) + mark) for version in range(2, 6) for mark in (b"", b"\x95")]),
    ("a NumPy array file", [(0, b"\x93NUMPY")]),
    ("an HDF5 file", [(0, b"\x89HDF\r\n\x1a\n")]),
    ("an Avro file", [(0, b"Obj\x01")]),
    ("an ORC file", [(0, b"ORC\x08"), (0, b"ORC\x0a")]),
    ("an SQLite database", [(0, b"SQLite format 3\0")]),
    ("a PostgreSQL dump", [(0, b"PGDMP")]),
    ("a GGUF model", [(0, b"GGUF")]),
    ("a program (ELF)", [(0, b"\x7fELF")]),
    ("a program (Mach-O or Java)", [(0, b"\xcf\xfa\xed\xfe"), (0, b"\xfe\xed\xfa\xcf"), (0, b"\xca\xfe\xba\xbe")]),
    ("a WebAssembly program", [(0, b"\0asm")]),
    ("a bzip2 archive", [(4, b"1AY&SY")]),
    ("an xz archive", [(0, b"\xfd7zXZ\0")]),
    ("an lz4 archive", [(0, b"\x04\x22\x4d\x18")]),
    ("a 7z archive", [(0, b"7z\xbc\xaf\x27\x1c")]),
    ("a RAR archive", [(0, b"Rar!\x1a\x07")]),
    ("a tar archive", [(257, b"ustar")]),
    ("a PNG image", [(0, b"\x89PNG\r\n\x1a\n")]),
    ("a JPEG image", [(0, b"\xff\xd8\xff")]),
    ("a GIF image", [(0, b"GIF87a"), (0, b"GIF89a")]),
    ("a TIFF image", [(0, b"II*\0"), (0, b"MM\0*")]),
    ("a RIFF file (image, sound or video)", [(8, b"WEBPVP8"), (8, b"WAVEfmt"), (8, b"AVI LIST")]),
    ("a sound file", [(0, b"OggS\0"), (0, b"fLaC\0"), (0, b"ID3\x03"), (0, b"ID3\x04")]),
    ("a video", [(4, b"ftyp")]),
    ("a Git LFS pointer, not the file itself", [(0, b"version https://git-lfs.github.com/spec/")]),
]
_MARKUP = {b"<!doctype html": "an HTML page", b"<html": "an HTML page", b"<?xml": "an XML file", b"<svg": "an SVG image"}
_BYTE_ORDER_MARKS = [  # longest first: that of UTF-32 starts with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
]


def check_signature(head: bytes, expected: str, *, where: str, encoding: str) -> None:
    """Raise SourceError unless the first bytes can begin an `expected` file (csv, tsv, jsonl, parquet, arrow, gzip or zstd)."""
    if not head:
        raise SourceError(f"{where} is empty, expected rows. Fetch the file again or correct ingest.source.path.")
    found = _kind(head)
    if expected in _FORMATS:
        if found != expected:
            raise SourceError(
                f"{where} starts with {head[:8]!r}, which is {_name(found) or 'not the start of ' + _FORMATS[expected][0]}; expected {_FORMATS[expected][0]}."
                " Fetch the file again, or correct ingest.source.format and ingest.source.compression."
            )
    elif found:
        raise SourceError(f"{where} is {_name(found)}, expected text ({expected}). {_advice(found)}.")
    else:
        _check_byte_order_mark(head, encoding, where)


def _kind(head: bytes) -> str:
    """A key of _FORMATS, or a foreign format in words; empty for what may be text."""
    for key, (_, marks) in _FORMATS.items():
        if _has_mark(head, marks):
            return key
    for name, marks in _FOREIGN:
        if _has_mark(head, marks):
            return name
    if head[:2] == b"MZ" and b"\0" in head[:64]:
        return "a program (Windows)"
    start = head.removeprefix(codecs.BOM_UTF8).lstrip()[:20].lower()
    return next((name for mark, name in _MARKUP.items() if start.startswith(mark)), "")


def _has_mark(head: bytes, marks: list[tuple[int, bytes]]) -> bool:
    return any(head[offset : offset + len(mark)] == mark for offset, mark in marks)


def _name(found: str) -> str:
    return _FORMATS[found][0] if found in _FORMATS else found


def _advice(found: str) -> str:
    if found in ("gzip", "zstd"):
        return f"Set ingest.source.compression to {found}"
    if found in ("parquet", "arrow"):
        return f"Set ingest.source.format to {found}"
    if "Git LFS" in found:
        return "Fetch the file itself: `git lfs pull`"
    if "HTML" in found:
        return "Open it in a browser: it is often a login or error page that was saved in place of the file"
    return "Export the rows as CSV, JSON lines or Parquet"


def _check_byte_order_mark(head: bytes, encoding: str, where: str) -> None:
    """A byte order mark says which Unicode encoding follows, and utf-16 and utf-32 without one leave the order of bytes to chance."""
    name = codecs.lookup(encoding).name
    found = next((mark_of for mark, mark_of in _BYTE_ORDER_MARKS if head.startswith(mark)), None)
    if found and not name.startswith(found):
        raise SourceError(
            f"{where} starts with the byte order mark of {found}, but ingest.source.encoding is {encoding}. Set it to {found}."
        )
    if not found and name in ("utf-16", "utf-32"):
        raise SourceError(
            f"{where} has no byte order mark, so {encoding} says no order of bytes. Set ingest.source.encoding to {name}-le or {name}-be."
        )
