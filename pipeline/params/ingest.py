"""The section ingest: sources and columns."""

import codecs
import re
from pathlib import PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from pipeline.params.section import PositiveInt, Section, Seed

RESERVED_COLUMNS = frozenset(
    {"row_id", "source_row", "label", "target", "label_confidence", "source_id", "origin", "text_for_people", "rule", "reason"}
)


NO_CHARSETS = frozenset({"idna", "punycode", "raw-unicode-escape", "undefined", "unicode-escape"})  # codecs of Python, not of files


def _text_encoding(name: str) -> str:
    try:
        known = codecs.lookup(name).name not in NO_CHARSETS
        "".encode(name)  # bytes to bytes, such as base64, is no text encoding
    except (LookupError, ValueError):
        known = False
    if not known:
        raise ValueError(f"{name!r} is not a text encoding; use a name such as utf-8, cp1252 or mac_roman")
    return name


def _delimiter(delimiter: str) -> str:
    if len(delimiter) != 1 or delimiter in '"\r\n\0\ufeff':
        raise ValueError(f"{delimiter!r} cannot delimit cells; use one character such as a comma, a semicolon or a tab")
    return delimiter


Encoding = Annotated[str, AfterValidator(_text_encoding)]
Delimiter = Annotated[str, AfterValidator(_delimiter)]
SUFFIXES = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".ipc": "arrow",
    ".feather": "arrow",
}
COMPRESSED_SUFFIXES = {".gz": "gzip", ".gzip": "gzip", ".zst": "zstd", ".zstd": "zstd"}


class FileFormat(Section):
    """How a file is stored. `auto` goes by the suffixes of `path`, such as `.jsonl.gz`; `encoding` and `delimiter` belong to text."""

    path: Annotated[str, Field(min_length=1)]
    format: Literal["auto", "csv", "tsv", "jsonl", "parquet", "arrow"] = "auto"
    compression: Literal["auto", "none", "gzip", "zstd"] = "auto"
    encoding: Encoding = "utf-8"
    delimiter: Delimiter | None = None

    @property
    def stored_format(self) -> str:
        """`format`, or what the suffix says; empty when it says nothing."""
        if self.format != "auto":
            return self.format
        suffixes = [suffix for suffix in self._suffixes() if suffix not in COMPRESSED_SUFFIXES]
        return SUFFIXES.get(suffixes[-1] if suffixes else "", "")

    @property
    def stored_compression(self) -> str:
        """`compression`, or what the suffix says: none, gzip or zstd."""
        last = self._suffixes()[-1:]
        return COMPRESSED_SUFFIXES.get(last[0] if last else "", "none") if self.compression == "auto" else self.compression

    def _suffixes(self) -> list[str]:
        """`.jsonl` and `.gz` of `data/rows.jsonl.gz`, or of a URL before its query."""
        name = self.path.split("?")[0] if "://" in self.path else self.path
        return [suffix.lower() for suffix in PurePosixPath(name).suffixes]

    @property
    def cell_delimiter(self) -> str:
        """`delimiter`, or the format's own: a comma, in TSV a tab."""
        return self.delimiter or {"tsv": "\t"}.get(self.stored_format, ",")

    @model_validator(mode="after")
    def _known_format(self) -> Self:
        stored = self.stored_format
        if not stored:
            raise ValueError(
                f"the suffix of {self.path!r} says no format; set `format` to one of {', '.join(sorted(set(SUFFIXES.values())))}"
            )
        if stored not in ("csv", "tsv") and self.delimiter is not None:
            raise ValueError(f"a {stored} file has no delimiter; leave `delimiter` out")
        if stored in ("parquet", "arrow") and self.encoding != "utf-8":
            raise ValueError(f"a {stored} file holds UTF-8; leave `encoding` out")
        return self


class PackageFileSource(FileFormat):
    """A file inside an installed Python package; the package itself is never imported."""

    kind: Literal["package_file"]
    package: str

    @field_validator("path")
    @classmethod
    def _inside(cls, path: str) -> str:
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise ValueError(f"{path!r} leads out of the package; use `kind: file` for a file elsewhere")
        return path


class FileSource(FileFormat):
    """A local file or a URL that fsspec can open (s3, gs, https and others); a relative path starts at the folder of params.yaml."""

    kind: Literal["file"]

    @field_validator("path")
    @classmethod
    def _one_open_url(cls, path: str) -> str:
        if "::" in path:
            raise ValueError("chained URLs are not read; store the file by itself")
        if re.match(r"[^/]+://[^/]*@", path):
            # The text after :// is not quoted: params.yaml is committed and errors are logged.
            raise ValueError("the URL holds a user name or password; leave it out, and give credentials in the environment")
        return path


class HubDatasetSource(Section):
    """A data set on the Hugging Face hub at a fixed revision (a commit hash or tag), or a local folder in its layout.

    A `name` that starts with `/`, `./` or `../` is a folder; a relative one starts at the folder of params.yaml and has no revision.
    """

    kind: Literal["hub_dataset"]
    name: str
    config: str | None = None
    split: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]
    revision: str | None = None

    @property
    def is_folder(self) -> bool:
        """Whether `name` is a path."""
        return self.name.startswith(("/", "./", "../"))

    @model_validator(mode="after")
    def _pinned(self) -> Self:
        if not self.is_folder and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", self.name):
            raise ValueError(f"{self.name!r} is no name on the hub; write owner/name, or a folder as ./folder")
        if not self.is_folder and self.revision is None:
            raise ValueError("`revision` is missing; give a commit hash or tag, so that the same rows are read tomorrow")
        if self.is_folder and self.revision is not None:
            raise ValueError("a local folder has no revision; leave `revision` out")
        return self


class SqlSource(Section):
    """The rows of one SQL query. The database's SQLAlchemy URL stands in the environment variable `url_variable`, never in this file."""

    kind: Literal["sql"]
    url_variable: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
    query: Annotated[str, Field(min_length=1)]


Source = Annotated[PackageFileSource | FileSource | HubDatasetSource | SqlSource, Field(discriminator="kind")]


class Columns(Section):
    """Which source column plays which part. `fields` maps the name used in `{braces}` of templates to a source column.

    Exactly one of `label` (one of a closed set) and `target` (free text) is set. `groups` maps the name of a group attribute to its column,
    `id` is the source's own identifier of a row, `origin` the document a row was taken from: rows of one origin share a split.
    """

    fields: Annotated[dict[str, str], Field(min_length=1)]
    label: str | None = None
    target: str | None = None
    label_confidence: str | None = None
    groups: dict[str, str] = Field(default_factory=dict[str, str])
    id: str | None = None
    origin: str | None = None

    @field_validator("fields", "groups")
    @classmethod
    def _names(cls, names: dict[str, str], info: ValidationInfo) -> dict[str, str]:
        for name in names:
            if not name.isidentifier() or name in RESERVED_COLUMNS:
                kind = str(info.field_name).removesuffix("s")
                raise ValueError(f"{name!r} cannot be a {kind} name: use an identifier other than {sorted(RESERVED_COLUMNS)}")
        return names

    @model_validator(mode="after")
    def _one_answer(self) -> Self:
        if (self.label is None) == (self.target is None):
            raise ValueError("set exactly one of `label` (one of a closed set) and `target` (free text)")
        if self.target is not None and self.label_confidence is not None:
            raise ValueError("`label_confidence` belongs to a label, not to a free-text target; leave it out")
        return self

    @property
    def answer(self) -> str:
        """The column of `raw` that holds what the prompt should answer: `label` or `target`."""
        return "label" if self.target is None else "target"

    def mapping(self) -> dict[str, str]:
        """Column of `raw` -> source column, for every text column, in the order of `raw`; `label_confidence` is a number and not among them."""
        optional = {"source_id": self.id, "origin": self.origin, **{f"group.{name}": column for name, column in self.groups.items()}}
        answer = {self.answer: self.label if self.target is None else self.target}
        return {name: column for name, column in {**self.fields, **answer, **optional}.items() if column is not None}


class IngestParams(Section):
    """Where rows come from. `sample_rows`: how many to draw (seeded, without replacement); null takes all.

    `stratify_sample` gives each label its share of the sample. A source beyond `maximum_rows` or `maximum_bytes` (unpacked) is an error:
    the first rows of a file are no fair sample of it.
    """

    source: Source
    columns: Columns
    sample_rows: PositiveInt | None = None
    stratify_sample: bool = False
    seed: Seed = 0
    maximum_rows: PositiveInt = 10_000_000
    maximum_bytes: PositiveInt = 4 * 2**30

    @model_validator(mode="after")
    def _strata(self) -> Self:
        if self.stratify_sample and self.columns.target is not None:
            raise ValueError("`stratify_sample` needs labels, and `columns.target` is free text; leave it out")
        return self
