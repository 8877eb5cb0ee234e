"""What a profile keeps, against plain counting over the rows; and that it keeps no text and no altered file is read."""

import json
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.data.profiles import (
    ARRAYS_FILE,
    RECORD_FILE,
    REFERENCE_FILE,
    Profile,
    read_profile,
    read_reference,
    word_hash,
    write_profile,
    write_reference,
)
from pipeline.errors import StageInputError
from pipeline.params import ProfileParams
from tests.data.drift_sides import GROUPS, batches, embed, profile, some_tweets, with_ids

SMALL = ProfileParams(sample_rows=50, embedded_rows=20, vocabulary_words=10)


def assert_same(first: Profile, second: Profile) -> None:
    for name in ("lengths", "points"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    np.testing.assert_array_equal(first.words.hashes, second.words.hashes)
    np.testing.assert_array_equal(first.words.rows, second.words.rows)
    same = ("rows", "labels", "base_model")
    assert [getattr(first, name) for name in same] == [getattr(second, name) for name in same]
    assert first.words.occurrences == second.words.occurrences
    assert {name: dict(counts.rows) for name, counts in first.groups.items()} == {name: dict(c.rows) for name, c in second.groups.items()}


def test_counts_are_those_of_all_rows_and_the_rest_of_the_smallest_ids():
    frame = some_tweets(3000)
    found = profile(frame, settings=SMALL)
    assert found.rows == 3000
    assert found.labels == dict(sorted(Counter(frame["label"]).items()))
    patterns = GROUPS["airline"].patterns
    assert found.groups["airline"].rows == {name: int(frame["text"].str.contains(text).sum()) for name, text in patterns.items()}
    sample = frame.sort_values("row_id").head(50)
    assert list(found.lengths) == [len(text) for text in sample["text"]]
    np.testing.assert_array_equal(found.points, embed(list(sample["text"][:20])).astype(np.float16))


def test_words_are_counted_once_per_row_whatever_their_case():
    frame = with_ids(pd.DataFrame({"text": ["Late LATE late!", "the late crew", "The crew, naïve", "ﬁne"], "label": "x"}))
    words = profile(frame).words
    counted = dict(zip(words.hashes.tolist(), words.rows.tolist(), strict=True))
    assert counted == {word_hash(word): n for word, n in {"late": 2, "the": 2, "crew": 2, "naïve": 1, "fine": 1}.items()}
    assert words.occurrences == 8
    assert list(words.hashes) == sorted(words.hashes)


def test_the_words_that_are_kept_are_those_in_most_rows():
    frame = some_tweets(500)
    kept = profile(frame, settings=ProfileParams(sample_rows=500, embedded_rows=1, vocabulary_words=5)).words
    counts = Counter(word for text in frame["text"] for word in set(re.findall(r"\w+", text.casefold())))
    assert sorted(kept.rows, reverse=True) == [count for _, count in counts.most_common(5)]
    assert kept.occurrences == profile(frame).words.occurrences


def test_neither_the_order_of_the_rows_nor_the_batches_matter():
    frame = some_tweets(2500)
    first = profile(frame, settings=SMALL)
    assert_same(first, profile(frame.sample(frac=1, random_state=3), settings=SMALL))
    assert len(batches(frame)) == 3


def test_one_row_of_each_document_is_sampled():
    frame = some_tweets(300).assign(origin=[f"document {index % 40}" for index in range(300)])
    found = profile(frame)
    expected = frame.sort_values("row_id").drop_duplicates("origin")
    assert list(found.lengths) == [len(text) for text in expected["text"]]
    assert found.rows == 300
    without = frame.assign(origin=None)
    assert len(profile(without).lengths) == 300, "rows without a document are not one document"


def test_group_columns_and_free_text_targets_are_kept():
    frame = some_tweets(100).drop(columns="label").assign(target=[f"answer {'x' * index}" for index in range(100)])
    frame["group.source"] = ["web", "app", "web", None] * 25
    found = profile(frame)
    assert found.labels is None
    assert found.target_lengths is not None
    assert sorted(found.target_lengths) == list(range(7, 107))
    assert dict(found.groups["source"].rows) == {"web": 50, "app": 25}


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, Path]:
    frame = pd.concat([some_tweets(200), with_ids(pd.DataFrame({"text": ["call zebrafish at 555 123"], "label": "neutral"}))])
    record, arrays = tmp_path / RECORD_FILE, tmp_path / ARRAYS_FILE
    write_profile(profile(frame), record=record, arrays=arrays, task="tweet_sentiment")
    return record, arrays


def test_what_was_written_is_read_and_holds_no_text(written: tuple[Path, Path], tmp_path: Path):
    record, arrays = written
    frame = pd.concat([some_tweets(200), with_ids(pd.DataFrame({"text": ["call zebrafish at 555 123"], "label": "neutral"}))])
    assert_same(read_profile(record=record, arrays=arrays), profile(frame))
    bytes_of_both = record.read_bytes() + arrays.read_bytes()
    words = {word for text in frame["text"] for word in re.findall(r"[a-z]{6,}", text.casefold())}
    assert len(words) > 300
    named = " ".join(
        ("lengths target_lengths data_offsets points word_hashes", *json.loads(record.read_text()), *GROUPS["airline"].patterns)
    )
    named += " airline negative neutral positive column definition occurrences weights_sha256 tokenizer_sha256 sampled_rows embedded_rows"
    assert [word for word in sorted(words) if word.encode() in bytes_of_both and word not in named] == []
    again = tmp_path / "again"
    write_profile(profile(frame), record=again / RECORD_FILE, arrays=again / ARRAYS_FILE, task="tweet_sentiment")
    assert (again / ARRAYS_FILE).read_bytes() == arrays.read_bytes()
    assert (again / RECORD_FILE).read_bytes() == record.read_bytes()


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "one bit flipped": flip,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("how", DAMAGES)
def test_altered_arrays_are_refused_by_name(written: tuple[Path, Path], how: str):
    record, arrays = written
    DAMAGES[how](arrays)
    with pytest.raises(StageInputError, match=re.escape(str(arrays))):
        read_profile(record=record, arrays=arrays)


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("schema_version", 2, "schema_version 2"),
        ("rows", ..., "'rows'"),
        ("words", {}, "'occurrences'"),
        ("groups", {"a": {}}, "'definition'"),
    ],
)
def test_a_record_of_another_form_is_refused_by_name(written: tuple[Path, Path], key: str, value: object, named: str):
    record, arrays = written
    content = json.loads(record.read_text())
    content[key] = value
    if value is ...:
        del content[key]
    record.write_text(json.dumps(content))
    with pytest.raises(StageInputError, match=named) as caught:
        read_profile(record=record, arrays=arrays)
    assert str(record) in str(caught.value)


def test_a_reference_says_whose_profile_it_is_and_notices_another_one(written: tuple[Path, Path], tmp_path: Path):
    folder = tmp_path / "reference"
    folder.mkdir()
    for path in written:
        shutil.copy(path, folder)
    write_reference(folder, asked="champion", version=3, reason=None)
    said, found = read_reference(folder)
    assert (said["asked"], said["version"], said["reason"]) == ("champion", 3, None)
    assert found is not None
    assert found.rows == 201
    record = json.loads((folder / RECORD_FILE).read_text())
    (folder / RECORD_FILE).write_text(json.dumps({**record, "rows": 5}))
    with pytest.raises(StageInputError, match=rf"{folder / RECORD_FILE} has sha256 .* was altered"):
        read_reference(folder)


def test_without_a_reference_there_is_a_reason(tmp_path: Path):
    write_reference(tmp_path, asked="champion", version=None, reason="no champion yet")
    assert read_reference(tmp_path) == ({"asked": "champion", "version": None, "reason": "no champion yet"}, None)
    (tmp_path / REFERENCE_FILE).write_text('{"version": null}')
    with pytest.raises(StageInputError, match="neither a version nor a reason"):
        read_reference(tmp_path)
