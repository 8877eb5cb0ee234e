"""E-mail addresses, phone numbers and card numbers in texts: how many each holds, and the text with a word in their place.

Candidates are found by RE2 over whole columns; only the few texts that hold one are looked at closer. A phone number is what
libphonenumber takes for a valid one, with its digits grouped as usual in its country. A card number has 13 to 19 digits, starts
as the payment networks' do (ISO/IEC 7812: 2 to 6) and passes Luhn's check (its Annex B), as one in ten random numbers does.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import compute

from pipeline.errors import ParamsError

pc: Any = compute  # its functions are made at import and unknown to type checkers

KINDS = ("e-mail addresses", "phone numbers", "card numbers")
_WORDS = {"e-mail addresses": "[e-mail address]", "phone numbers": "[phone number]", "card numbers": "[card number]"}
_EMAIL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._%+\-]*@[A-Za-z0-9\-]+(?:\.[A-Za-z0-9\-]+)*\.[A-Za-z]{2,}")
_CARD = re.compile(r"(?<![\d.])[2-6](?:[ \-]?\d){12,18}(?!\d)")
# RE2 knows no lookaround; each finds every text that the closer look could find something in.
_CANDIDATES = _EMAIL.pattern + r"|(?:[\d\x{FF10}-\x{FF19}\x{0660}-\x{0669}][^\dA-Za-z]{0,4}){6}"

Span = tuple[int, int]


@dataclass(frozen=True)
class PersonalData:
    """What was found in a column: `counts` is [rows, KINDS], `masked` the column with words in place of what was found."""

    counts: npt.NDArray[np.int64]
    masked: pa.Array


def find_personal_data(texts: pa.Array, *, phone_region: str | None) -> PersonalData:
    """Look through a column of texts (null where there is none). Raises ParamsError when nobody knows that region's phone numbers."""
    counts = np.zeros((len(texts), len(KINDS)), dtype="int64")
    finders = _finders(phone_region)
    suspects = pc.fill_null(pc.match_substring_regex(texts, _CANDIDATES), False)
    replaced: list[str] = []
    holds = np.zeros(len(texts), dtype=bool)
    for index in np.flatnonzero(suspects.to_numpy(zero_copy_only=False)):
        found = _find(texts[int(index)].as_py(), finders)
        if found:
            holds[index] = True
            counts[index] = [sum(kind == name for _, kind in found) for name in KINDS]
            replaced.append(_mask(texts[int(index)].as_py(), found))
    masked = pc.replace_with_mask(texts, pa.array(holds), pa.array(replaced, type=texts.type)) if replaced else texts
    return PersonalData(counts, masked)


def _finders(phone_region: str | None) -> dict[str, Callable[[str], list[Span]]]:
    """Kind -> where a text holds it; a kind higher up claims its characters first."""
    import phonenumbers

    if phone_region is not None and phone_region not in phonenumbers.SUPPORTED_REGIONS:
        raise ParamsError(
            f"validate.personal_data.phone_region: {phone_region!r} is no country whose phone numbers are known. "
            "Use an ISO 3166 code such as US or DE, or null for numbers with a country code only."
        )
    return {"card numbers": _cards, "e-mail addresses": _emails, "phone numbers": partial(_phones, region=phone_region)}


def _find(text: str, finders: dict[str, Callable[[str], list[Span]]]) -> list[tuple[Span, str]]:
    """(where, kind) of everything found, from the end of the text to its start, without overlaps."""
    found: list[tuple[Span, str]] = []
    for kind, finder in finders.items():
        for start, end in finder(text):
            if all(end <= other_start or other_end <= start for (other_start, other_end), _ in found):
                found.append(((start, end), kind))
    return sorted(found, reverse=True)


def _mask(text: str, found: list[tuple[Span, str]]) -> str:
    for (start, end), kind in found:
        text = text[:start] + _WORDS[kind] + text[end:]
    return text


def _emails(text: str) -> list[Span]:
    return [match.span() for match in _EMAIL.finditer(text)]


def _cards(text: str) -> list[Span]:
    from stdnum import luhn

    return [match.span() for match in _CARD.finditer(text) if luhn.is_valid(re.sub(r"\D", "", match.group()))]


def _phones(text: str, *, region: str | None) -> list[Span]:
    import phonenumbers

    matcher = cast("Any", phonenumbers.PhoneNumberMatcher(text, region, leniency=phonenumbers.Leniency.STRICT_GROUPING))
    return [(match.start, match.end) for match in matcher]
