"""Files that are broken, hostile or not what they say: name -> bytes, options of the source, and what must become of them.

All are read with the columns `text` (a field) and `label`. None is stored anywhere: each is made here, from its specification or with the
library that writes such files.
"""

import bz2
import gzip
import io
import json
import lzma
import pickle
import sqlite3
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


@dataclass(frozen=True)
class Refused:
    """A SourceError that holds these words: the place and the reason."""

    words: tuple[str, ...]


@dataclass(frozen=True)
class Accepted:
    """So many rows, and these oddities in the report."""

    rows: int
    oddities: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """One file."""

    name: str
    content: bytes
    expected: Refused | Accepted
    options: Mapping[str, Any] = field(default_factory=dict)


def refused(name: str, content: bytes | str, *words: str, **options: Any) -> Case:
    """A file that must be refused with these words."""
    return Case(name, content if isinstance(content, bytes) else content.encode(), Refused(words), options)


def accepted(name: str, content: bytes | str, rows: int, *, options: Mapping[str, Any] | None = None, **oddities: int) -> Case:
    """A file that must be read, its oddities counted."""
    return Case(name, content if isinstance(content, bytes) else content.encode(), Accepted(rows, oddities), options or {})


HEAD = "label,text\n"
LINE = '{"label": "a", "text": "b"}\n'


# --- how the files are made -------------------------------------------------------------------------------------------


def parquet(columns: Any = None, **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(
        columns if isinstance(columns, pa.Table) else pa.table(columns or {"label": ["a", "b"], "text": ["x", "y"]}), sink, **options
    )
    return sink.getvalue()


def arrow_stream(columns: Any = None, batches: int = 3) -> bytes:
    batch = pa.record_batch(columns or {"label": ["a", "b"], "text": ["x", "y"]})
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        for _ in range(batches):
            writer.write_batch(batch)
    return sink.getvalue()


def arrow_file(columns: Any = None) -> bytes:
    batch = pa.record_batch(columns or {"label": ["a", "b"], "text": ["x", "y"]})
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


def bad_utf8_parquet() -> bytes:
    """Text columns whose bytes are no UTF-8, which the format does not check."""
    bad = pa.array([b"ok", b"\xff\xfe"]).view(pa.string())
    return parquet(pa.table({"label": ["a", "b"], "text": bad}))


def bad_utf8_arrow() -> bytes:
    return arrow_file({"label": pa.array(["a", "b"]), "text": pa.array([b"ok", b"\xc3("]).view(pa.string())})


def bad_offsets_arrow() -> bytes:
    """A text column whose offsets point far behind its bytes."""
    content = arrow_file()
    offsets = struct.pack("<3i", 0, 1, 2)
    at = content.rindex(offsets)
    return content[:at] + struct.pack("<3i", 0, 1, 2_000_000_000) + content[at + len(offsets) :]


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :]


def checked_parquet(flip: bool) -> bytes:
    """With a checksum for each page, and one bit of a text flipped."""
    content = parquet(
        {"label": ["a", "b"], "text": ["findme", "y"]},
        compression="none",
        write_page_checksum=True,
        use_dictionary=False,
        write_statistics=False,
    )
    return flipped(content, content.index(b"findme")) if flip else content


def zip_file(name: str = "in.csv") -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr(name, HEAD + "a,b\n")
    return sink.getvalue()


def tar_file() -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        entry = tarfile.TarInfo("in.csv")
        entry.size = len(HEAD)
        archive.addfile(entry, io.BytesIO(HEAD.encode()))
    return sink.getvalue()


def numpy_file() -> bytes:
    sink = io.BytesIO()
    np.save(sink, np.zeros(3))
    return sink.getvalue()


def sqlite_file() -> bytes:
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE a (label, text)")
    content = connection.serialize()
    connection.close()
    return content


def png_file() -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(b"\0\0"))
        + chunk(b"IEND", b"")
    )


class Bomb:
    """What a hostile pickle would run."""

    def __reduce__(self) -> Any:
        return (print, ("ran",))


GZ = gzip.compress((HEAD + "a,b\n" * 1000).encode())
ZST = pa.Codec("zstd").compress((HEAD + "a,b\n" * 1000).encode(), asbytes=True)
JSON_CELL = '{"label": "a", "text": %s}\n'
# Longer than what is decoded at a time, so that a place must be counted over its border.
LONG_CSV = (HEAD + f"a,{'b' * 997}\n" * 1_500).encode()
LONG_JSON = (JSON_CELL % json.dumps("b" * 971) * 1_500).encode()
BIG_INT = "9" * 5_000


SIGNATURES = [
    refused("pickle.csv", pickle.dumps({"label": ["a"]}), "pickle.csv is a pickle"),
    refused("pickle2.csv", pickle.dumps(Bomb(), protocol=2), "is a pickle"),
    refused("pickle5.jsonl", pickle.dumps(Bomb(), protocol=5), "is a pickle"),
    refused("pickle0.csv", pickle.dumps({"label": "a"}, protocol=0), "has no column 'text'; it has '(dp0'"),
    refused("workbook.csv", zip_file("xl/workbook.xml"), "zip archive (an Excel workbook is one)"),
    refused("archive.jsonl", zip_file(), "zip archive"),
    refused("empty_zip.csv", b"PK\x05\x06" + b"\0" * 18, "zip archive"),
    refused("old_excel.csv", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 504, "old Microsoft Office file"),
    refused("packed.csv", GZ, "is gzip data", "Set ingest.source.compression to gzip"),
    refused("packed_zstd.csv", ZST, "is zstd data", "Set ingest.source.compression to zstd"),
    refused("packed_bz2.csv", bz2.compress(HEAD.encode()), "bzip2"),
    refused("packed_xz.csv", lzma.compress(HEAD.encode()), "xz archive"),
    refused("twice.csv.gz", gzip.compress(GZ), "is gzip data"),
    refused("elf.csv", b"\x7fELF\x02\x01\x01" + b"\0" * 57, "a program (ELF)"),
    refused("windows.csv", b"MZ\x90\0\x03\0\0\0" + b"\0" * 56, "a program (Windows)"),
    refused("macho.csv", b"\xcf\xfa\xed\xfe\x07\0\0\x01", "a program (Mach-O or Java)"),
    refused("wasm.csv", b"\0asm\x01\0\0\0", "WebAssembly"),
    refused("paper.csv", b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "is a PDF"),
    refused("letter.csv", rb"{\rtf1\ansi text}", "RTF"),
    refused("database.csv", sqlite_file(), "an SQLite database"),
    refused("dump.csv", b"PGDMP\x01\x0e\0", "PostgreSQL dump"),
    refused("png.csv", png_file(), "PNG image"),
    refused("jpeg.csv", b"\xff\xd8\xff\xe0\0\x10JFIF\0", "JPEG image"),
    refused("gif.csv", b"GIF89a\x01\0\x01\0", "GIF image"),
    refused("numpy.csv", numpy_file(), "NumPy array"),
    refused("hdf5.csv", b"\x89HDF\r\n\x1a\n" + b"\0" * 8, "HDF5"),
    refused("avro.csv", b"Obj\x01\x04\x16avro.schema", "Avro"),
    refused("tar.csv", tar_file(), "tar archive"),
    refused("model.csv", b"GGUF\x03\0\0\0", "GGUF"),
    refused("login.csv", "\n <!DOCTYPE html><html><body>Please log in</body></html>", "an HTML page", "login or error page"),
    refused("error.jsonl", "<html><body>503</body></html>", "an HTML page"),
    refused("feed.csv", '<?xml version="1.0"?><rows/>', "an XML file"),
    refused("pointer.csv", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "Git LFS pointer", "git lfs pull"),
    refused("parquet.csv", parquet(), "is a Parquet file", "Set ingest.source.format to parquet"),
    refused("arrow.jsonl", arrow_file(), "is an Arrow file", "Set ingest.source.format to arrow"),
    refused("csv.parquet", HEAD + "a,b\n", "not the start of a Parquet file"),
    refused("csv.arrow", HEAD + "a,b\n", "not the start of an Arrow file"),
    refused("csv.csv.gz", HEAD + "a,b\n", "not the start of gzip data"),
    refused("csv.jsonl.zst", LINE, "not the start of zstd data"),
    refused("encrypted.parquet", b"PARE" + b"\0" * 20 + b"PARE", "an encrypted Parquet file"),
]

ENCODINGS = [
    refused("empty.csv", b"", "empty.csv is empty"),
    refused("mark_only.csv", b"\xef\xbb\xbf", "only blank lines"),
    refused("latin1.csv", b"label,text\na,ok\na,caf\xe9\n", "line 3 (data row 2)", "0xe9 at offset 21"),
    refused("header_latin1.csv", b"label,text\xe9\na,b\n", "line 1 (the header)", "offset 10"),
    refused("overlong.csv", b"label,text\na,\xc0\xaf\n", "0xc0 at offset 13"),
    refused("surrogate.csv", b"label,text\na,\xed\xa0\x80\n", "0xed at offset 13"),
    refused("beyond_unicode.csv", b"label,text\na,\xf5\x80\x80\x80\n", "0xf5 at offset 13"),
    refused("cut_character.csv", b"label,text\na,caf\xc3", "offset 16", "unexpected end of data"),
    refused("late.csv", LONG_CSV + b"a,\xff\n", "line 1502 (data row 1501)", f"offset {len(LONG_CSV) + 2}"),
    refused("late.jsonl", LONG_JSON + b'{"label": "\xff"}\n', "line 1501 (data row 1501)", f"offset {len(LONG_JSON) + 11}"),
    refused("quoted_late.csv", b'label,text\n"a","x\ny\nz"\na,"p\nq\xff"\n', "line 6 (data row 2)", "offset 29"),
    refused("utf16_as_utf8.csv", (HEAD + "a,b\n").encode("utf-16"), "byte order mark of utf-16", "ingest.source.encoding is utf-8"),
    refused("utf32_as_utf16.csv", (HEAD + "a,b\n").encode("utf-32"), "byte order mark of utf-32", encoding="utf-16"),
    refused(
        "utf16_no_mark.csv", (HEAD + "a,b\n").encode("utf-16-le"), "has no byte order mark", "utf-16-le or utf-16-be", encoding="utf-16"
    ),
    refused("utf16_no_mark_as_utf8.csv", (HEAD + "a,b\n").encode("utf-16-le"), "line 1 (the header)", "NUL"),
    refused("utf8_mark_as_cp1252.csv", b"\xef\xbb\xbflabel,text\na,b\n", "byte order mark of utf-8", encoding="cp1252"),
    refused("utf16_odd.csv", b"\xff\xfel\0a", "truncated data", encoding="utf-16"),
    refused("utf16_lone_surrogate.csv", "label,text\na,".encode("utf-16") + b"\x00\xd8b\x00", "illegal", encoding="utf-16"),
    refused("cp1252_gap.csv", b"label,text\na,\x81\n", "0x81 at offset 13 is not cp1252", encoding="cp1252"),
    refused("ascii.csv", (HEAD + "a,\u00e9\n").encode(), "0xc3 at offset 13 is not ascii", encoding="ascii"),
    refused("shift_jis.csv", b"label,text\na,\x82\n", "line 2 (data row 1)", encoding="shift_jis"),
    refused("two_marks.csv", "\ufeff\ufeff" + HEAD + "a,b\n", "line 1 (the header)", "U+FEFF"),
    refused("joined_with_mark.csv", "\ufeff" + HEAD + "a,b\n" + "\ufeff" + HEAD + "c,d\n", "line 3 (data row 2)", "files are joined"),
    refused("joined_with_mark.jsonl", LINE + "\ufeff" + LINE, "line 2 (data row 2)", "files are joined"),
    refused("nul.csv", HEAD + "a,b\nc,d\0e\n", "line 3 (data row 2)", "NUL"),
    refused("nul_unmapped.csv", "label,text,other\na,b,\0\n", "line 2 (data row 1)", "NUL"),
    accepted("mark.csv", "\ufeff" + HEAD + "a,b\n", 1, leading_byte_order_mark=1),
    accepted("mark_inside.csv", HEAD + "a,b\ufeffc\n", 1, byte_order_marks=1),
    accepted("replaced.csv", HEAD + "a,caf\ufffd\na,caf\ufffd \ufffd\na,x\n", 3, replacement_characters=2),
    accepted("bidi.csv", HEAD + "a,x\u202eevil\u202c\na,\u05d0\u200f\n", 2, bidi_controls=2),
    accepted("escape.csv", HEAD + "a,\x1b[31mred\x1b[0m\na,bell\x07\x7f\na,tab\there\n", 3, c0_controls=2),
    accepted("c1.csv", b"label,text\na,it\x92s\n", 1, c1_controls=1, options={"encoding": "latin-1"}),
    accepted("tags.csv", HEAD + "a,hi\U000e0069\U000e0067\n", 1, tag_characters=1),
    accepted("noncharacter.csv", HEAD + "a,x\uffff\na,\ufdd0\na,\U0001fffe\n", 3, noncharacters=3),
    accepted("oddities_in_two_columns.csv", HEAD + "a\ufffd,b\ufffd\u202e\n", 1, replacement_characters=2, bidi_controls=1),
    accepted("oddity_in_an_unread_column.csv", "label,text,other\na,b,\ufffd\n", 1),
    accepted("separators.csv", HEAD + "a,one\u2028two\x85three\x0bfour\x0cfive\n", 1, c0_controls=1, c1_controls=1),
]

TABLES = [
    refused("blank.csv", "\n\n\r\n", "only blank lines"),
    refused("header_only.csv", HEAD, "has no data row"),
    refused("short_row.csv", HEAD + "a,b\nc\n", "data row 2 (ends on line 3): 1 cells, the header has 2"),
    refused("long_row.csv", HEAD + "a,b,c\n", "data row 1 (ends on line 2): 3 cells"),
    refused("unclosed.csv", HEAD + 'a,"b\nc,d\n', "line 3 (data row 1)", "unexpected end of data"),
    refused("unclosed_long.csv", HEAD + 'a,"b\n' + "c,d\n" * 50_000, "field larger than field limit (131072)"),
    refused("after_quote.csv", HEAD + 'a,"b"c\n', "line 2 (data row 1)", "expected after"),
    refused("wrong_delimiter.csv", "label;text\na;b\n", "has no column 'text'; it has 'label;text'", "ingest.source.delimiter (',')"),
    refused("excel_hint.csv", "sep=,\n" + HEAD + "a,b\n", "has no column 'text'; it has 'sep=', ''"),
    refused("twice.csv", "label,text,text\na,b,c\n", "2 columns named 'text'"),
    refused("capital.csv", "Label,Text\na,b\n", "no column 'text'; it has 'Label', 'Text'"),
    refused("wide.csv", "label,text" + ",x" * 2_000 + "\n", "2,002 cells, the limit is 1,000 columns"),
    refused("long_cell.csv", HEAD + "a," + "x" * 131_073 + "\n", "line 2 (data row 1)", "field larger"),
    refused("long_line.csv", HEAD + "a," + "x" * 9_000_000, "line 2 (data row 1)", "more than 8,388,608 characters in one line"),
    refused("one_line.jsonl", "x" * 9_000_000, "line 1 (data row 1)", "more than 8,388,608 characters in one line"),
    refused("json_as_csv.csv", LINE, "has no column 'text'"),
    refused("tsv_as_csv.csv", "label\ttext\na\tb\n", "has no column 'text'; it has 'label\\ttext'"),
    accepted("formula.csv", HEAD + "a,\"=cmd|'/c calc'!A0\"\n", 1),
    accepted("bare_quote.csv", HEAD + 'a,say "hi"\n', 1),
    accepted("old_mac.csv", "label,text\ra,b\rc,d\r", 2),
]

JSON_LINES = [
    refused("array.jsonl", '[{"label": "a", "text": "b"}]\n', "line 1 (data row 1)", "a JSON list"),
    refused("pretty.jsonl", '[\n  {"label": "a", "text": "b"}\n]\n', "line 1 (data row 1)", "a JSON array is no JSON lines file"),
    refused("object_over_lines.jsonl", '{"label": "a",\n"text": "b"}\n', "line 1 (data row 1), column 15"),
    refused("two_on_a_line.jsonl", LINE.strip() + LINE, "line 1 (data row 1), column 28: Extra data"),
    refused("number.jsonl", "3\n", "a JSON int"),
    refused("text.jsonl", '"label"\n', "a JSON str"),
    refused("null.jsonl", "null\n", "a JSON NoneType"),
    refused("nan.jsonl", LINE + JSON_CELL % "NaN", "line 2 (data row 2): NaN is no JSON value"),
    refused("infinity.jsonl", JSON_CELL % "-Infinity", "-Infinity is no JSON value"),
    refused("infinite_number.jsonl", JSON_CELL % "1e999", "1e999 is too large"),
    refused("nan_unmapped.jsonl", '{"label": "a", "text": "b", "x": NaN}\n', "NaN is no JSON value"),
    refused("huge_int.jsonl", JSON_CELL % BIG_INT, "line 1 (data row 1)", "4300"),
    refused("key_twice.jsonl", '{"label": "a", "text": "b", "label": "c"}\n', "the key 'label' stands twice"),
    refused("inner_key_twice.jsonl", '{"label": "a", "text": "b", "x": {"y": 1, "y": 2}}\n', "the key 'y' stands twice"),
    refused("no_key.jsonl", LINE + '{"label": "a"}\n', "line 2 (data row 2): no column (key) 'text'; it has 'label'"),
    refused("nested_value.jsonl", JSON_CELL % '{"inner": "b"}', "key 'text'", "(dict)"),
    refused("list_value.jsonl", JSON_CELL % '["b"]', "key 'text'", "(list)"),
    refused("deep.jsonl", JSON_CELL % ("[" * 100_000 + "]" * 100_000), "nested more than 32 deep"),
    refused("deep_unclosed.jsonl", "[" * 1_000_000, "nested more than 32 deep"),
    refused("deep_objects.jsonl", '{"a":' * 5_000, "nested more than 32 deep"),
    refused("many_keys.jsonl", json.dumps({f"k{i}": 1 for i in range(1_001)} | {"label": "a", "text": "b"}), "1,003 keys in one object"),
    refused("half_pair.jsonl", JSON_CELL % r'"\ud83d"', "data row 1, column 'text'", "surrogate pair"),
    refused("escaped_nul.jsonl", LINE + JSON_CELL % r'"a\u0000b"', "data row 2, column 'text'", "NUL"),
    refused("raw_control.jsonl", JSON_CELL % '"a\tb"', "line 1 (data row 1)", "control character"),
    refused("single_quotes.jsonl", "{'label': 'a', 'text': 'b'}\n", "line 1 (data row 1), column 2"),
    refused("comment.jsonl", "// rows\n" + LINE, "line 1 (data row 1)"),
    refused("trailing_comma.jsonl", '{"label": "a", "text": "b",}\n', "line 1 (data row 1)"),
    refused("csv_as_json.jsonl", HEAD + "a,b\n", "line 1 (data row 1), column 1"),
    refused("cut.jsonl", LINE + '{"label": "a", "te', "line 2 (data row 2)"),
    refused("blank.jsonl", "\n \n", "no data row"),
    refused(
        "long_value.jsonl", JSON_CELL % json.dumps("x" * 131_073), "data row 1, column 'text': 131,073 characters, the limit is 131,072"
    ),
    accepted("brackets_in_text.jsonl", JSON_CELL % json.dumps("[" * 100 + '"{\\'), 1),
    accepted("paired.jsonl", JSON_CELL % r'"\ud83d\ude00"', 1),
    accepted("escaped_odd.jsonl", JSON_CELL % r'"\u202e\ufffd\u001b"', 1, bidi_controls=1, replacement_characters=1, c0_controls=1),
    accepted("line_separators.jsonl", JSON_CELL % json.dumps("a\u2028b\u2029c", ensure_ascii=False), 1),
]

PACKED = [
    refused("cut.csv.gz", GZ[:-20], "cannot be unpacked as gzip"),
    refused("no_trailer.csv.gz", GZ[:-8], "cannot be unpacked as gzip"),
    refused("wrong_checksum.csv.gz", GZ[:-8] + b"\0" * 4 + GZ[-4:], "cannot be unpacked as gzip", "CRC check failed"),
    refused("wrong_length.csv.gz", GZ[:-4] + b"\0" * 4, "cannot be unpacked as gzip"),
    refused("flipped.csv.gz", flipped(GZ, 30), "cannot be unpacked as gzip"),
    refused("garbage_behind.csv.gz", GZ + b"garbage", "cannot be unpacked as gzip"),
    refused("only_magic.csv.gz", b"\x1f\x8b", "cannot be unpacked as gzip"),
    refused("cut.csv.zst", ZST[:-5], "cannot be unpacked as zstd"),
    refused("garbage_behind.csv.zst", ZST + b"garbage", "cannot be unpacked as zstd"),
    refused("only_magic.csv.zst", ZST[:4], "zst"),
    refused("pickle.csv.gz", gzip.compress(pickle.dumps({"a": 1})), "is a pickle"),
    refused("empty.csv.gz", gzip.compress(b""), "is empty"),
    refused("latin1.csv.gz", gzip.compress(b"label,text\na,caf\xe9\n"), "line 2 (data row 1)", "offset 16"),
    accepted("padded.csv.gz", gzip.compress((HEAD + "a,b\n").encode()) + b"\0" * 512, 1),
]

COLUMNAR = [
    refused("cut.parquet", parquet()[:-10], "is not a readable Parquet file"),
    refused("cut_front.parquet", b"PAR1", "is not a readable Parquet file"),
    refused("cut_middle.parquet", parquet()[:60] + parquet()[-300:], "Parquet file"),
    refused("flipped_footer.parquet", flipped(parquet(), len(parquet()) - 200), "Parquet"),
    refused("long_footer.parquet", parquet()[:-8] + struct.pack("<I", 2**31) + b"PAR1", "is not a readable Parquet file"),
    refused("flipped_page.parquet", checked_parquet(flip=True), "is not a readable Parquet file", "CRC"),
    refused("bad_utf8.parquet", bad_utf8_parquet(), "is not a readable Parquet file", "UTF8"),
    refused("no_rows.parquet", parquet(pa.table({"label": pa.array([], pa.string()), "text": pa.array([], pa.string())})), "no data row"),
    refused("no_column.parquet", parquet({"label": ["a"]}), "no column 'text'; it has 'label'"),
    refused("twice.parquet", parquet(pa.Table.from_arrays([pa.array(["a"])] * 3, ["label", "text", "text"])), "2 columns named 'text'"),
    refused("struct.parquet", parquet({"label": ["a"], "text": [{"inner": "b"}]}), "data row 1, column 'text'", "(dict)"),
    refused("bytes.parquet", parquet({"label": ["a"], "text": [b"b"]}), "data row 1, column 'text'", "(bytes)"),
    refused("nul.parquet", parquet({"label": ["a", "b"], "text": ["x", "y\0"]}), "data row 2, column 'text'", "NUL"),
    refused("long.parquet", parquet({"label": ["a"], "text": ["x" * 600_000]}), "600,000 bytes, the limit is 131,072 characters"),
    refused(
        "wide.parquet", parquet({f"c{i}": [1] for i in range(1_001)} | {"label": ["a"], "text": ["b"]}), "1,003 columns, the limit is 1,000"
    ),
    refused("cut.arrow", arrow_file()[:-30], "is not a readable Arrow file"),
    refused("cut_stream.arrow", arrow_stream()[:-20], "without its end mark"),
    refused("cut_between_batches.arrow", arrow_stream()[:-8], "without its end mark"),
    refused("bad_utf8.arrow", bad_utf8_arrow(), "is not a readable Arrow file", "UTF8"),
    refused("bad_offsets.arrow", bad_offsets_arrow(), "is not a readable Arrow file"),
    refused("old_feather.arrow", b"FEA1" + b"\0" * 20 + b"FEA1", "Feather file of version 1"),
    refused("no_column.arrow", arrow_stream({"label": ["a"]}), "no column 'text'"),
    accepted("checked.parquet", checked_parquet(flip=False), 2),
    accepted("odd.parquet", parquet({"label": ["a"], "text": ["x\u202e\ufffd"]}), 1, bidi_controls=1, replacement_characters=1),
    accepted("odd.arrow", arrow_stream({"label": ["a"], "text": ["x\ufeff"]}), 3, byte_order_marks=3),
]

CASES = [*SIGNATURES, *ENCODINGS, *TABLES, *JSON_LINES, *PACKED, *COLUMNAR]
