"""What every reader hands on: blocks of rows as text, one list for each mapped column of the source."""

from collections.abc import Iterator, Sequence

from pipeline.errors import SourceError

Block = list[list[str | None]]  # one list for each wanted source column, all of one length; None is a missing value
Blocks = Iterator[Block]


def positions(present: Sequence[str], wanted: Sequence[str], *, where: str, hint: str = "") -> list[int]:
    """Where each wanted column stands among the present ones; raises SourceError when one is not there, or there twice."""
    listed = ", ".join(repr(name[:60]) for name in present[:20]) + (", ..." if len(present) > 20 else "")
    for name in wanted:
        if name not in present:
            raise SourceError(f"{where} has no column {name!r}; it has {listed}. Correct ingest.columns{hint}.")
        if present.count(name) > 1:
            raise SourceError(f"{where} has {present.count(name)} columns named {name!r}; it has {listed}. Give them different names.")
    return [present.index(name) for name in wanted]


def transpose(rows: Sequence[Sequence[str | None]]) -> Block:
    """Rows of cells as columns of cells."""
    return [list(column) for column in zip(*rows, strict=True)]
