"""Labelled rows out of a delimited text file, read strictly: what cannot be read as described is an error, never a guess."""

import csv
import hashlib
import importlib.util
import io
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pipeline.errors import SourceError
from pipeline.params import Columns, FileSource, PackageFileSource

Source = PackageFileSource | FileSource


@dataclass(frozen=True)
class SourceRows:
    """All rows of a source. `rows` has the columns of the stage file `raw`; `sha256` and `size` (bytes) are the source file's."""

    rows: pd.DataFrame
    description: str
    sha256: str
    size: int


def read_source(source: Source, columns: Columns, *, root: Path) -> SourceRows:
    """Read every row of `source`; a `file` source starts at `root`, the folder of params.yaml.

    Raises SourceError when the file is not there, is not text in the given encoding, is not a table, or lacks a column.
    """
    path = locate(source, root=root)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SourceError(f"{path} cannot be read ({error.strerror}). Check its permissions.") from error
    text = decode(content, source.encoding, path=path)
    rows = _parse(text, source.delimiter, columns, path=path)
    return SourceRows(rows, _describe(source), hashlib.sha256(content).hexdigest(), len(content))


# --- where the file lies ----------------------------------------------------------------------------------------------


def locate(source: Source, *, root: Path) -> Path:
    """The path of the source's file. A package is looked up, not imported: importing it runs its code, which may not even work."""
    if isinstance(source, FileSource):
        path = root / source.path
    else:
        folder = _package_folder(source.package, source.path)
        path = folder / source.path
    if path.is_dir():
        raise SourceError(f"{path} is a folder, expected a delimited text file. Set ingest.source.path to a file inside it.")
    if not path.is_file():
        raise SourceError(f"{path} does not exist. Correct ingest.source.path ({source.path!r}), or put the file there.")
    return path


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


def _describe(source: Source) -> str:
    where = f"{source.path} in the package {source.package}" if isinstance(source, PackageFileSource) else source.path
    return f"{where} ({source.encoding})"


# --- bytes to text ----------------------------------------------------------------------------------------------------


def decode(content: bytes, encoding: str, *, path: Path) -> str:
    """`content` as text, without a leading byte order mark; raises SourceError at the first byte the encoding does not have."""
    if not content:
        raise SourceError(f"{path} is empty, expected a header line and data rows. Fetch the file again or correct ingest.source.path.")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].decode(encoding, errors="replace").count("\n") + 1
        raise SourceError(
            f"{path}, line {line}: byte 0x{content[error.start]:02x} at offset {error.start} is not {encoding}."
            " Set ingest.source.encoding to the file's real encoding (for example cp1252 or mac_roman)."
        ) from None
    except (LookupError, ValueError):
        raise SourceError(
            f"ingest.source.encoding: {encoding!r} is not a text encoding. Use a name such as utf-8, cp1252 or mac_roman."
        ) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise SourceError(
            f"{path}, line {line}: a NUL byte, so this is no {encoding} text. Set ingest.source.encoding (utf-16?) or correct the file."
        )
    return text.removeprefix("\ufeff")


# --- text to rows -----------------------------------------------------------------------------------------------------


def _parse(text: str, delimiter: str, columns: Columns, *, path: Path) -> pd.DataFrame:
    records = _records(text, delimiter, path=path)
    first = next(records, None)
    if first is None:
        raise SourceError(f"{path} holds only blank lines, expected a header line and data rows. Fetch the file again.")
    _, header = first
    sources = [columns.label, *columns.fields.values(), *([columns.label_confidence] if columns.label_confidence else [])]
    positions = _positions(header, sources, delimiter, path=path)
    cells: list[list[str]] = []
    for number, (line, record) in enumerate(records, 1):
        if len(record) != len(header):
            raise SourceError(
                f"{path}, data row {number} (ends on line {line}): {len(record)} cells, the header has {len(header)}."
                f" Quote cells that hold the delimiter {delimiter!r}, or correct ingest.source.delimiter."
            )
        cells.append([record[position] for position in positions])
    if not cells:
        raise SourceError(f"{path} has a header and no data row. Fetch the file again or correct ingest.source.path.")
    return _frame(cells, columns, path=path)


def _records(text: str, delimiter: str, *, path: Path) -> Iterator[tuple[int, list[str]]]:
    """(last line, cells) of every record but blank lines; quoted cells may span lines."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        yield from ((reader.line_num, record) for record in reader if record)
    except csv.Error as error:
        raise SourceError(
            f"{path}, line {reader.line_num}: {error}. Correct the quoting there, or ingest.source.delimiter ({delimiter!r})."
        ) from None


def _positions(header: Sequence[str], sources: Sequence[str], delimiter: str, *, path: Path) -> list[int]:
    present = ", ".join(repr(name) for name in header)
    for name in sources:
        if name not in header:
            raise SourceError(
                f"{path} has no column {name!r}; it has {present}. Correct ingest.columns or ingest.source.delimiter ({delimiter!r})."
            )
        if header.count(name) > 1:
            raise SourceError(f"{path} has {header.count(name)} columns named {name!r}; it has {present}. Give them different names.")
    return [header.index(name) for name in sources]


def _frame(cells: Sequence[Sequence[str]], columns: Columns, *, path: Path) -> pd.DataFrame:
    """Rows of [label, *fields, confidence?] as the stage file `raw`. An empty cell is null; the text "NA" is a text."""
    names = list(columns.fields)
    labels = [_present(row[0]) for row in cells]
    fields = {name: [_present(row[i]) for row in cells] for i, name in enumerate(names, 1)}
    confidences = [math.nan] * len(cells)
    if columns.label_confidence:
        confidences = [_number(row[-1], f"{path}, data row {n}, column {columns.label_confidence!r}") for n, row in enumerate(cells, 1)]
    contents = [{"label": label, "fields": {name: fields[name][i] for name in names}} for i, label in enumerate(labels)]
    return pd.DataFrame(
        {
            "row_id": pd.array(row_ids(contents), dtype="str"),
            "source_row": pd.array(range(1, len(cells) + 1), dtype="int64"),
            **{name: pd.array(values, dtype="str") for name, values in fields.items()},
            "label": pd.array(labels, dtype="str"),
            "label_confidence": pd.array(confidences, dtype="float64"),
        }
    )


def _present(cell: str) -> str | None:
    return cell if cell.strip() else None


def _number(cell: str, where: str) -> float:
    if not cell.strip():
        return math.nan
    try:
        value = float(cell.replace("_", "?"))  # float() would read 1_000 as a number
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise SourceError(
            f"{where}: {cell[:40]!r} is not a number. Correct the cell, leave it empty, or set ingest.columns.label_confidence to null."
        )
    return value


def row_ids(contents: Sequence[object]) -> list[str]:
    """Ids from the rows' content: 16 hex digits of sha256 over canonical JSON, and "-2", "-3" on exact repetitions.

    So ids are unique, and a row keeps its id when rows are appended to the source.
    """
    seen: Counter[str] = Counter()
    ids: list[str] = []
    for content in contents:
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        seen[digest] += 1
        ids.append(digest if seen[digest] == 1 else f"{digest}-{seen[digest]}")
    return ids


# --- sampling ---------------------------------------------------------------------------------------------------------


def draw_sample(rows: pd.DataFrame, *, sample_rows: int | None, seed: int) -> pd.DataFrame:
    """`sample_rows` rows without replacement, in source order; all rows when there are no more than that.

    The rows with the smallest sha256 of (seed, row_id) are drawn (bottom-k sampling): a uniform draw that depends on no
    random generator, and in which a row appended to the source displaces at most one drawn row.
    """
    if sample_rows is None or len(rows) <= sample_rows:
        return rows.reset_index(drop=True)
    ranks = pd.Series([hashlib.sha256(f"{seed}/{row_id}".encode()).hexdigest() for row_id in rows["row_id"]], index=rows.index)
    drawn = ranks.sort_values(kind="stable").index[:sample_rows]
    return rows.loc[drawn.sort_values()].reset_index(drop=True)
