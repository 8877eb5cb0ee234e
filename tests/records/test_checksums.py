"""A Parquet file whose bytes are not those that were written is never read, whatever happened to it or to its checksum."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import StageInputError
from pipeline.records import checksum_file, iterate_parquet, parquet_writer, read_parquet, remove_parquet, verify_parquet, write_parquet

ROWS = pd.DataFrame({"text": [f"row {n} 🎈" for n in range(50)], "p": [n / 7 for n in range(50)]})
READERS: dict[str, Callable[[Path], object]] = {
    "read_parquet": read_parquet,
    "iterate_parquet": lambda path: next(iterate_parquet(path)),
    "verify_parquet": verify_parquet,
}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "table.parquet"
    write_parquet(path, ROWS)
    return path


def refusal(path: Path) -> str:
    """The message with which every reader refuses the file, the same of all."""
    messages: set[str] = set()
    for read in READERS.values():
        with pytest.raises(StageInputError) as caught:
            read(path)
        messages.add(str(caught.value))
    (message,) = messages
    return message


def test_the_checksum_is_what_sha256sum_reads(table: Path):
    assert checksum_file(table).read_text() == f"{hashlib.sha256(table.read_bytes()).hexdigest()}  table.parquet\n"
    done = subprocess.run(["sha256sum", "--check", "--strict", "table.parquet.sha256"], cwd=table.parent, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "table.parquet: OK\n")


def test_every_reader_gives_the_rows_that_were_written(table: Path):
    pd.testing.assert_frame_equal(read_parquet(table, ["p"]), ROWS)
    batches = list(iterate_parquet(table, ["p"], batch_rows=20))
    assert [batch.num_rows for batch in batches] == [20, 20, 10]
    assert [batch.schema.names for batch in batches] == [["p"]] * 3
    assert [value for batch in batches for value in batch.column("p").to_pylist()] == list(ROWS["p"])
    assert verify_parquet(table) == hashlib.sha256(table.read_bytes()).hexdigest()
    with pytest.raises(StageInputError, match=r"lacks the columns \['q'\]; it has \['text', 'p'\]"):
        next(iterate_parquet(table, ["q"]))


def test_every_flipped_bit_that_is_tried_is_refused_with_both_sums(table: Path):
    written = table.read_bytes()
    expected = hashlib.sha256(written).hexdigest()
    positions = range(0, 8 * len(written), 61)
    assert len(positions) > 250
    for position in positions:
        altered = bytearray(written)
        altered[position // 8] ^= 1 << position % 8
        table.write_bytes(altered)
        with pytest.raises(StageInputError) as caught:
            read_parquet(table)
        message = str(caught.value)
        assert f"{table} was altered" in message
        assert expected in message
        assert hashlib.sha256(altered).hexdigest() in message
        assert "promptmill data repair" in message
    table.write_bytes(written)
    assert len(read_parquet(table)) == len(ROWS)


def test_without_the_checksum_a_flipped_bit_goes_unnoticed(table: Path):
    """Why there is one: most bits of a Parquet file can change without pyarrow or pandas noticing."""
    written = table.read_bytes()
    silent = 0
    for position in range(0, 8 * len(written), 997):
        altered = bytearray(written)
        altered[position // 8] ^= 1 << position % 8
        try:
            silent += pq.read_table(pa.BufferReader(bytes(altered))).num_rows == len(ROWS)
        except (OSError, ValueError):
            continue
    assert silent > 0


@pytest.mark.parametrize("keep", [0, 1, 100, -1])
def test_a_truncated_or_longer_file_is_refused(table: Path, keep: int):
    written = table.read_bytes()
    table.write_bytes(written[:keep])
    assert "was altered" in refusal(table)
    table.write_bytes(written + b"\0")
    assert "was altered" in refusal(table)


def test_two_tables_changed_for_each_other_are_refused_with_or_without_their_checksums(table: Path):
    other = table.with_name("other.parquet")
    write_parquet(other, ROWS.tail(20))
    shutil.move(table, table.with_name("aside"))
    shutil.move(other, table)
    shutil.move(table.with_name("aside"), other)
    assert "was altered" in refusal(table)
    assert "was altered" in refusal(other)
    checksum_file(table).rename(table.with_name("aside"))
    checksum_file(other).rename(checksum_file(table))
    table.with_name("aside").rename(checksum_file(other))
    assert "cannot be trusted: table.parquet.sha256 holds b'" in refusal(table)
    assert "cannot be trusted: other.parquet.sha256 holds b'" in refusal(other)


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"0" * 64, b"0" * 64 + b"\n", b"%s *table.parquet\n", b"%s  table.parquet", b"%s  table.parquet\n\n", b"%s  ../table.parquet\n"],
)  # fmt: skip
def test_a_checksum_in_another_form_is_refused_even_when_the_sum_is_right(table: Path, content: bytes):
    right = hashlib.sha256(table.read_bytes()).hexdigest().encode()
    checksum_file(table).write_bytes(content.replace(b"%s", right))
    assert "expected one line of a sha256, two spaces and table.parquet" in refusal(table)


def test_a_table_without_its_checksum_is_refused(table: Path):
    checksum_file(table).unlink()
    assert "table.parquet.sha256 cannot be read (No such file or directory)" in refusal(table)
    remove_parquet(table)
    assert list(table.parent.iterdir()) == []
    assert "does not exist" in refusal(table)
    remove_parquet(table)


def test_a_sum_given_by_the_caller_takes_the_place_of_the_checksum_file(table: Path):
    sha256 = verify_parquet(table)
    checksum_file(table).unlink()
    assert next(iterate_parquet(table, sha256=sha256)).num_rows == len(ROWS)
    with pytest.raises(StageInputError, match="was altered"):
        next(iterate_parquet(table, sha256="0" * 64))


def _stop_half_way(path: Path, schema: pa.Schema) -> None:
    with parquet_writer(path, schema) as writer:
        writer.write_batch(pa.record_batch({"text": ["d"], "n": [9]}, schema=schema))
        raise KeyboardInterrupt


def test_batches_are_written_as_one_table_and_an_error_leaves_the_old_one(tmp_path: Path):
    path, schema = tmp_path / "table.parquet", pa.schema([("text", pa.string()), ("n", pa.int64())])
    with parquet_writer(path, schema) as writer:
        for start in (0, 3):
            writer.write_batch(pa.record_batch({"text": ["a", None, "c"], "n": list(range(start, start + 3))}, schema=schema))
    assert read_parquet(path)["n"].tolist() == list(range(6))
    assert str(read_parquet(path)["text"].dtype) == "str"
    with pytest.raises(KeyboardInterrupt):
        _stop_half_way(path, schema)
    assert len(read_parquet(path)) == 6
    assert sorted(file.name for file in tmp_path.iterdir()) == ["table.parquet", "table.parquet.sha256"]


WRITER = """
import itertools, sys
from pathlib import Path
import pyarrow as pa
from pipeline.records import parquet_writer
for n in itertools.count():
    batch = pa.record_batch({"n": [n] * 1000})
    with parquet_writer(Path(sys.argv[1]), batch.schema) as writer:
        writer.write_batch(batch)
    sys.stdout.write("x")
    sys.stdout.flush()
"""


def test_a_killed_writer_leaves_a_table_that_is_whole_or_refused(tmp_path: Path, repo_root: Path):
    for kill in range(6):
        path = tmp_path / f"{kill}" / "table.parquet"
        with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], cwd=repo_root, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.read(1) == b"x"
            time.sleep(0.002 * kill)
            process.send_signal(signal.SIGKILL)
        try:
            rows = read_parquet(path)
        except StageInputError:
            assert "was altered" in refusal(path)
            continue
        assert rows["n"].nunique() == 1
        assert len(rows) == 1000


@pytest.mark.parametrize("old", [True, False])
def test_a_writer_killed_between_the_two_renames_leaves_what_is_refused(table: Path, monkeypatch: pytest.MonkeyPatch, old: bool):
    if not old:
        remove_parquet(table)
    replace, renamed = Path.replace, list[str]()

    def killed(self: Path, target: Path) -> Path:
        renamed.append(os.fspath(target))
        if len(renamed) == 2:
            raise SystemExit
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(SystemExit):
        write_parquet(table, ROWS.tail(1))
    assert renamed == [str(table), str(checksum_file(table))]
    assert ("was altered" if old else "cannot be trusted") in refusal(table)
