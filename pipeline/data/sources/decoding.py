"""Bytes to lines of text, strictly and piece by piece: nothing is guessed, replaced or dropped but one leading byte order mark."""

import codecs
import io
from collections import Counter
from collections.abc import Iterator
from typing import BinaryIO

from pipeline.data.sources.limits import MAXIMUM_LINE_CHARACTERS
from pipeline.errors import SourceError

_PIECE = 2**20  # bytes decoded at a time


class Undecodable(Exception):
    """Bytes that are no text; the reader that meets them adds the row. Raised only when all lines before them were handed out."""

    def __init__(self, line: int, problem: str, advice: str) -> None:
        super().__init__(problem)
        self.line, self.problem, self.advice = line, problem, advice  # the advice is for sources that params describe


def placed(error: Undecodable, where: str, row: int) -> SourceError:
    """The same for people, with the file, the line and the data row; row 0 is the header."""
    return SourceError(f"{where}, line {error.line} ({f'data row {row}' if row else 'the header'}): {error.problem}. {error.advice}")


def decoded_lines(stream: BinaryIO, encoding: str, oddities: Counter[str]) -> Iterator[str]:
    """Lines with their ends (\\n, \\r\\n or \\r; no other character ends a line). Raises Undecodable naming line and byte offset."""
    lines = 0  # handed out
    held = ""  # the last line so far: it may go on, and a \r may be half of \r\n
    for number, (decoded, problem) in enumerate(_decoded_pieces(stream, encoding)):
        text = decoded if number else _without_mark(decoded, oddities)
        *whole, held = [*io.StringIO(held + text, newline="")] or [""]
        if problem and held.endswith(("\n", "\r")):
            whole, held = [*whole, held], ""
        for line in whole:
            lines += 1
            yield _checked(line, lines)
        _checked(held, lines + 1)
        if problem:
            raise Undecodable(lines + 1, *problem)
    if held:
        yield _checked(held, lines + 1)


def _without_mark(text: str, oddities: Counter[str]) -> str:
    oddities["leading_byte_order_mark"] += text.startswith("\ufeff")
    return text.removeprefix("\ufeff")


def _decoded_pieces(stream: BinaryIO, encoding: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(text, problem): a problem (what and advice), where there is one, is with the byte right behind the text, and ends the pieces."""
    decoder = codecs.getincrementaldecoder(encoding)("strict")
    offset = 0  # of the piece
    final = False
    while not final:
        piece = stream.read(_PIECE)
        final = not piece
        before = decoder.getstate()
        try:
            yield decoder.decode(piece, final), ()
        except UnicodeDecodeError as error:
            pending = len(error.object) - len(piece)  # bytes of a character that began in an earlier piece
            decoder.setstate(before)
            good = decoder.decode(piece[: max(error.start - pending, 0)])
            byte, at = error.object[error.start], offset + error.start - pending
            advice = "Set ingest.source.encoding to the file's real encoding (for example cp1252 or mac_roman), or fetch the file again."
            yield good, (f"byte 0x{byte:02x} at offset {at} is not {encoding} ({error.reason})", advice)
            return
        except UnicodeError as error:  # a codec that does not say where
            advice = "Set ingest.source.encoding to the file's real encoding."
            yield "", (f"the bytes from offset {offset} on are not {encoding} ({error})", advice)
            return
        offset += len(piece)


def _checked(line: str, number: int) -> str:
    if "\0" in line:
        raise Undecodable(
            number, "a NUL byte, so this is no text in this encoding", "Set ingest.source.encoding (utf-16?) or correct the file."
        )
    if line.startswith("\ufeff"):
        raise Undecodable(
            number,
            "a byte order mark (U+FEFF) at the start of the line, as where files are joined",
            "Remove it, and a second header behind it.",
        )
    if len(line) > MAXIMUM_LINE_CHARACTERS:
        raise Undecodable(
            number, f"more than {MAXIMUM_LINE_CHARACTERS:,} characters in one line", "Break the lines, or correct ingest.source.format."
        )
    return line
