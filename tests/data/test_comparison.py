"""What changed between two raw tables, counted once more with plain multisets of Python."""

import random
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from pipeline.data.comparison import RawTable, compare_tables
from pipeline.errors import StageInputError
from pipeline.records import checksum_file, sha256_file, write_parquet

Row = tuple[str | None, str | None, str | None]  # two fields and a label


def write(path: Path, rows: list[Row]) -> RawTable:
    write_parquet(path, pd.DataFrame(rows, columns=["question", "context", "label"]).astype("str"))
    return RawTable(path)


def expected(before: list[Row], after: list[Row]) -> dict[str, int]:
    """The same counts by taking rows away one by one."""
    left, new = list((Counter(before) - Counter(after)).elements()), list((Counter(after) - Counter(before)).elements())
    relabelled = sum((Counter(row[:2] for row in left) & Counter(row[:2] for row in new)).values())
    return {
        "rows_before": len(before),
        "rows_after": len(after),
        "added": len(new) - relabelled,
        "removed": len(left) - relabelled,
        "relabelled": relabelled,
    }


def draw(seed: int) -> list[Row]:
    rng = random.Random(seed)
    texts = ["a", "b", "ab", "", None, "a, b", "None", "Zürich 🎈"]
    return [(rng.choice(texts), rng.choice(texts), rng.choice(["x", "y", None])) for _ in range(rng.randrange(0, 60))]


@pytest.mark.parametrize("seed", range(12))
def test_the_counts_are_those_of_multisets(tmp_path: Path, seed: int):
    before, after = draw(seed), draw(seed + 100)
    tables = write(tmp_path / "before.parquet", before), write(tmp_path / "after.parquet", after)
    found = compare_tables(*tables, fields=["question", "context"], target="label")
    assert {name: found[name] for name in expected(before, after)} == expected(before, after)
    assert found["rows_before"] + found["added"] - found["removed"] == found["rows_after"]


def test_the_same_rows_in_another_order_are_no_change(tmp_path: Path):
    rows = draw(3)
    tables = write(tmp_path / "before.parquet", rows), write(tmp_path / "after.parquet", rows[::-1])
    found = compare_tables(*tables, fields=["question", "context"], target="label")
    assert (found["added"], found["removed"], found["relabelled"], found["total_variation_distance"]) == (0, 0, 0, 0.0)


def test_the_label_shift_is_half_the_sum_of_share_differences(tmp_path: Path):
    before: list[Row] = [(f"{n}", "", "x" if n < 30 else "y") for n in range(40)]
    after: list[Row] = [(f"{n}", "", "x" if n < 10 else "z") for n in range(20)]
    tables = write(tmp_path / "before.parquet", before), write(tmp_path / "after.parquet", after)
    found = compare_tables(*tables, fields=["question"], target="label")
    assert found["labels"] == {"x": {"before": 30, "after": 10}, "y": {"before": 10, "after": 0}, "z": {"before": 0, "after": 10}}
    assert found["total_variation_distance"] == pytest.approx((0.25 + 0.25 + 0.5) / 2)
    assert "labels" not in compare_tables(*tables, fields=["question"], target="label", labels=False)


def test_an_altered_table_and_one_without_the_columns_are_refused(tmp_path: Path):
    before, after = write(tmp_path / "before.parquet", draw(1)), write(tmp_path / "after.parquet", draw(2))
    with pytest.raises(StageInputError, match=r"lacks the columns \['text'\]"):
        compare_tables(before, after, fields=["text"], target="label")
    sha256 = sha256_file(after.path)
    checksum_file(after.path).unlink()
    compare_tables(before, RawTable(after.path, sha256), fields=["question"], target="label")
    with pytest.raises(StageInputError, match="was altered"):
        compare_tables(before, RawTable(after.path, "0" * 64), fields=["question"], target="label")
