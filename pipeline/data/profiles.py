"""What is kept of a training split so that later data can be compared with it: counts, lengths, words and points, and no text.

A profile has two files: a JSON record with the counts, and safetensors with the arrays, whose sha256 stands in the record
(safetensors has no checksum of its own). Counts are over all rows. The rest is of the sampled rows, those with the smallest row
ids: ids are hashes of the content, so that is a random sample, and nearly the same one when rows are added. Of several rows that were
taken from one document (column `origin`) only one is sampled, because rows that repeat each other would make chance look like drift.

Words are kept as 64-bit hashes with the number of sampled rows they are in. A hash hides no word that somebody thinks of trying: it
keeps texts from being read, not from being tested for a word.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save_file

from pipeline.data.deduplication import normalise
from pipeline.errors import StageInputError
from pipeline.fairness.groups import text_groups
from pipeline.records import read_json, replacing_file, sha256_file, sha256_json, write_json

if TYPE_CHECKING:
    from pipeline.params import ProfileParams, TextGroups

SCHEMA_VERSION = 1
REFERENCE_FILE, RECORD_FILE, ARRAYS_FILE = "reference.json", "data_profile.json", "profile.safetensors"
GROUP_COLUMN = "group."
COLUMN_DEFINITION = "column"  # an attribute that is a column of the data, not a pattern in the text

_AGAIN = "Run the stage that writes it again: `dvc repro`."
_WORD = re.compile(r"\w+")

# Texts of N rows -> their points [N, H].
Embed = Callable[[Sequence[str]], NDArray[np.floating[Any]]]


@dataclass(frozen=True)
class GroupCounts:
    """Rows per group of one attribute; a row may be in several groups or in none. Equal definitions mean comparable groups."""

    definition: str
    rows: Mapping[str, int]


@dataclass(frozen=True)
class Words:
    """The words kept: `hashes` [W], ascending, and in how many sampled rows each is, `rows` [W].

    `occurrences`: the number of (row, word) pairs over all words, also over those that were not kept.
    """

    hashes: NDArray[np.uint64]
    rows: NDArray[np.int64]
    occurrences: int


@dataclass(frozen=True)
class Profile:
    """A training split as it is compared. `labels` is None for free-text targets, `target_lengths` [S] for labels.

    `lengths` [S] are characters of the sampled rows; `points` [E, H] the first E of them in the space of `base_model`.
    """

    rows: int
    labels: Mapping[str, int] | None
    groups: Mapping[str, GroupCounts]
    lengths: NDArray[np.int64]
    target_lengths: NDArray[np.int64] | None
    words: Words
    points: NDArray[np.floating[Any]]
    base_model: Mapping[str, str]


def make_profile(
    batches: Iterable[pa.RecordBatch],
    *,
    fields: Sequence[str],
    groups: Mapping[str, "TextGroups"],
    settings: "ProfileParams",
    embed: Embed,
    base_model: Mapping[str, str],
) -> Profile:
    """The profile of the rows in `batches`, which have `row_id`, the fields, and `label` or `target`.

    `groups`: the attributes that are patterns in the text; columns named `group.<attribute>` are counted too.
    """
    counts = _Counts(groups)
    sample = pd.DataFrame()
    for batch in batches:
        texts = joined_texts(batch, fields)
        counts.add(batch, texts)
        sample = _sampled(sample, _candidates(batch, texts), settings.sample_rows)
    texts = [str(text) for text in sample["text"]] if len(sample) else []
    points = np.asarray(embed(texts[: settings.embedded_rows])).astype(np.float16)
    return Profile(
        rows=counts.rows,
        labels=dict(sorted(counts.labels.items())) if counts.labelled else None,
        groups=counts.groups(),
        lengths=_lengths(texts),
        target_lengths=_lengths([str(text) for text in sample["target"]]) if "target" in sample.columns else None,
        words=count_words(texts, settings.vocabulary_words),
        points=points,
        base_model=dict(base_model),
    )


def joined_texts(batch: pa.RecordBatch, fields: Sequence[str]) -> list[str]:
    """The fields of each row joined by a line break, as group patterns see them."""
    columns = [batch.column(name).to_pylist() for name in fields]
    return ["\n".join(str(value) for value in values) for values in zip(*columns, strict=True)]


def count_words(texts: Sequence[str], keep: int) -> Words:
    """The `keep` words that are in most texts (ties: smaller hash), each counted once per text; upper and lower case are one."""
    rows: Counter[str] = Counter()
    for text in texts:
        rows.update(set(_WORD.findall(normalise(text))))
    hashed: Counter[int] = Counter()
    for word, count in rows.items():
        hashed[word_hash(word)] += count
    kept = sorted(sorted(hashed.items(), key=lambda item: (-item[1], item[0]))[:keep])
    return Words(
        hashes=np.array([number for number, _ in kept], dtype=np.uint64),
        rows=np.array([count for _, count in kept], dtype=np.int64),
        occurrences=sum(rows.values()),
    )


def word_hash(word: str) -> int:
    """64 bits of BLAKE2b of the word."""
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def write_profile(profile: Profile, *, record: Path, arrays: Path, **more: Any) -> dict[str, Any]:
    """Write both files of a profile; `more` stands in the record too. Returns the record."""
    held = {"lengths": profile.lengths, "word_hashes": profile.words.hashes, "word_rows": profile.words.rows, "points": profile.points}
    if profile.target_lengths is not None:
        held["target_lengths"] = profile.target_lengths
    with replacing_file(arrays) as temporary:
        save_file(held, temporary)
        sha256 = hashlib.sha256(temporary.read_bytes()).hexdigest()
    written = {
        "schema_version": SCHEMA_VERSION,
        **more,
        "rows": profile.rows,
        "labels": profile.labels,
        "groups": {name: {"definition": counts.definition, "rows": dict(counts.rows)} for name, counts in profile.groups.items()},
        "sampled_rows": len(profile.lengths),
        "embedded_rows": len(profile.points),
        "words": {"kept": len(profile.words.hashes), "occurrences": profile.words.occurrences},
        "base_model": dict(profile.base_model),
        "arrays_sha256": sha256,
    }
    write_json(record, written)
    return written


def read_profile(*, record: Path, arrays: Path) -> Profile:
    """Read both files of a profile; raises StageInputError naming the file that is missing, altered or of another form."""
    written = read_json(record)
    if written.get("schema_version") != SCHEMA_VERSION:
        raise StageInputError(
            f"{record} has schema_version {written.get('schema_version')!r}, this promptmill reads {SCHEMA_VERSION}. {_AGAIN}"
        )
    held = _read_arrays(arrays, written.get("arrays_sha256"), record)
    try:
        profile = Profile(
            rows=written["rows"],
            labels=written["labels"],
            groups={name: GroupCounts(counts["definition"], counts["rows"]) for name, counts in written["groups"].items()},
            lengths=held["lengths"],
            target_lengths=held.get("target_lengths"),
            words=Words(held["word_hashes"], held["word_rows"], written["words"]["occurrences"]),
            points=held["points"],
            base_model=written["base_model"],
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise StageInputError(f"{record} and {arrays.name} lack what a data profile holds ({error!r}). {_AGAIN}") from error
    return profile


def write_reference(folder: Path, *, asked: str | int, version: int | None, reason: str | None) -> dict[str, Any]:
    """Say in `folder` which version was `asked` for, which one's profile lies there, and else for what `reason` none does.

    Returns the record. Where there is a version, the two files of its profile must lie in the folder already.
    """
    record = {"asked": asked, "version": version, "reason": reason}
    if version is not None:
        record["data_profile_sha256"] = sha256_file(folder / RECORD_FILE)
    write_json(folder / REFERENCE_FILE, record)
    return record


def read_reference(folder: Path) -> tuple[dict[str, Any], Profile | None]:
    """What `write_reference` said, and the profile, if there is one; raises StageInputError naming the file that was altered."""
    record = read_json(folder / REFERENCE_FILE)
    if record.get("version") is None:
        if not record.get("reason"):
            raise StageInputError(f"{folder / REFERENCE_FILE} names neither a version nor a reason why there is none. {_AGAIN}")
        return record, None
    found = sha256_file(folder / RECORD_FILE) if (folder / RECORD_FILE).is_file() else None
    if found != record.get("data_profile_sha256"):
        raise StageInputError(
            f"{folder / RECORD_FILE} has sha256 {found}, {REFERENCE_FILE} says {record.get('data_profile_sha256')}: the file was altered. {_AGAIN}"
        )
    return record, read_profile(record=folder / RECORD_FILE, arrays=folder / ARRAYS_FILE)


def _read_arrays(path: Path, expected: Any, record: Path) -> dict[str, NDArray[Any]]:
    """The arrays, from the very bytes whose sha256 was compared."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StageInputError(f"{path} cannot be read ({error.strerror}). {_AGAIN}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise StageInputError(f"{path} has sha256 {found}, {record} says {expected}: the file was altered. {_AGAIN}")
    try:
        return load(content)
    except SafetensorError as error:
        raise StageInputError(f"{path} is no safetensors file ({error}). {_AGAIN}") from error


@dataclass
class _Counts:
    """What is counted over all rows, batch after batch."""

    patterns: Mapping[str, "TextGroups"]
    rows: int = 0
    labelled: bool = False
    labels: Counter[str] = field(default_factory=Counter[str])
    matched: dict[str, Counter[str]] = field(default_factory=dict[str, Counter[str]])
    columns: dict[str, Counter[str]] = field(default_factory=dict[str, Counter[str]])

    def add(self, batch: pa.RecordBatch, texts: Sequence[str]) -> None:
        """Count the rows of one batch."""
        self.rows += batch.num_rows
        names = batch.schema.names
        self.labelled = self.labelled or "label" in names
        self.labels.update(_value_counts(batch, "label") if "label" in names else {})
        for name in (name for name in names if name.startswith(GROUP_COLUMN)):
            self.columns.setdefault(name.removeprefix(GROUP_COLUMN), Counter()).update(_value_counts(batch, name))
        for name, attribute in self.patterns.items():
            members = text_groups(texts, attribute.patterns)
            self.matched.setdefault(name, Counter()).update({group: int(rows.sum()) for group, rows in members.items()})

    def groups(self) -> dict[str, GroupCounts]:
        """Attribute -> its counts; a pattern and a column of one name are told apart by a prefix."""
        of_columns = {name: GroupCounts(COLUMN_DEFINITION, dict(sorted(rows.items()))) for name, rows in self.columns.items()}
        of_patterns = {
            (f"text.{name}" if name in self.columns else name): GroupCounts(
                sha256_json(attribute.patterns), dict(self.matched.get(name, {}))
            )
            for name, attribute in self.patterns.items()
        }
        return of_columns | of_patterns


def _value_counts(batch: pa.RecordBatch, column: str) -> dict[str, int]:
    """Value -> rows of one text column; null is no value."""
    counted = batch.column(column).drop_null().value_counts().to_pylist()
    return {str(entry["values"]): int(entry["counts"]) for entry in counted}


def _candidates(batch: pa.RecordBatch, texts: Sequence[str]) -> pd.DataFrame:
    columns = {name: batch.column(name).to_pylist() for name in ("row_id", "origin", "target") if name in batch.schema.names}
    return pd.DataFrame({**columns, "text": list(texts)})


def _sampled(sample: pd.DataFrame, more: pd.DataFrame, rows: int) -> pd.DataFrame:
    """The rows with the smallest ids of both, one per document."""
    both = pd.concat([sample, more], ignore_index=True).sort_values("row_id", kind="stable")
    if "origin" in both.columns:
        both = both[both["origin"].isna() | ~both["origin"].duplicated()]
    return both.head(rows)


def _lengths(texts: Sequence[str]) -> NDArray[np.int64]:
    return np.array([len(text) for text in texts], dtype=np.int64)
