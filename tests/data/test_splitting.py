"""split: the same for the same text or origin whatever the other rows, near-duplicates in one split only, every row accounted for."""

import hashlib
import json
from collections import Counter
from itertools import combinations

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from pipeline.data.deduplication import DistinctTexts, bare, normalise
from pipeline.data.splitting import SPLITS, TIES, check_counts, examine_rows, label_shares, position
from pipeline.errors import SplitError, StageInputError
from pipeline.params import SplitParams
from pipeline.records import write_parquet
from tests.data.recombined import components, near_pairs, random_texts, varied

LABELS = ("no", "yes")
ALL = ["urls", "handles", "digits", "punctuation"]
NEAR = {"similarity": 0.8, "shingle_characters": 5, "boilerplate_share": 0.1}
VERBALIZERS = {"verbalizers": {"no": " no", "yes": " yes"}}


def options(**changes):
    return SplitParams(**{"validation_share": 0.1, "test_share": 0.2, "seed": 0, "ignored": ALL, "near_duplicates": NEAR, **changes})


def codes(texts, origins=None, **changes):
    columns = {"text": texts} | ({"origin": origins} if origins is not None else {})
    batches = pa.Table.from_pydict(columns).to_batches(max_chunksize=700)
    return examine_rows(batches, DistinctTexts(), fields=["text"], params=options(**changes)).split


def frame(texts, labels=None, **columns):
    count = len(texts)
    return pd.DataFrame(
        {"row_id": [f"r{i}" for i in range(count)], "text": texts, "label": labels or [LABELS[i % 2] for i in range(count)], **columns}
    )


def run_split(workspace, rows, **changes):
    write_parquet(workspace.path("accepted"), rows)
    values = {"validation_share": 0.1, "test_share": 0.2, "seed": 0, **changes}
    return workspace.run("split", workspace.params(prompt=VERBALIZERS, split=values))


def parts(workspace):
    return {name: pd.read_parquet(workspace.path(name)) for name in (*SPLITS, "set_aside")}


def homes(workspace):
    return {row_id: name for name, part in parts(workspace).items() for row_id in part["row_id"]}


# --- which split ------------------------------------------------------------------------------------------------------


def test_position_is_fixed_for_all_time():
    """Written out by another route: the leading 53 bits of sha256("0/text")."""
    bits = bin(int(hashlib.sha256(b"0/text").hexdigest(), 16))[2:].zfill(256)[:53]
    assert position("text", 0) == int(bits, 2) / 2**53


def test_a_split_is_that_of_the_bare_text_alone():
    texts = [*random_texts(2000, 0), "Mixed Case, 12:30 @you https://t.co/x", "...", "@me"]
    for text, code in zip(texts, codes(texts), strict=True):
        where = position(bare(normalise(text), ALL), 0)
        assert SPLITS[code] == ("test" if where < 0.2 else "validation" if where >= 0.9 else "train")


def test_rows_of_one_origin_share_a_split_and_rows_without_one_have_their_texts():
    texts = random_texts(3000, 1)
    origins = [None if i % 5 == 0 else f"document {i % 37}" for i in range(3000)]
    found, alone = codes(texts, origins), codes(texts)
    homes_of = {origin: {int(found[i]) for i in range(3000) if origins[i] == origin} for origin in set(origins) - {None}}
    assert {len(homes) for homes in homes_of.values()} == {1}
    assert len({next(iter(homes)) for homes in homes_of.values()}) == 3
    assert all(found[i] == alone[i] for i in range(0, 3000, 5))


def test_texts_that_differ_in_ignored_parts_share_a_split():
    texts = random_texts(500, 2)
    other = [f"@somebody {text.upper()}!! 7 https://example.org/{i}" for i, text in enumerate(texts)]
    assert (codes(texts) == codes(other)).all()
    assert (codes(texts, ignored=[]) != codes(other, ignored=[])).any()


def test_numbers_can_be_told_apart():
    sums = [f"{i} + {j} =" for i in range(30) for j in range(30)]
    assert len(set(codes(sums, ignored=["urls", "handles"]).tolist())) == 3
    assert len(set(codes([f"add {sum}" for sum in sums]).tolist())) == 1


def test_another_seed_splits_otherwise():
    texts = random_texts(1000, 3)
    changed = (codes(texts) != codes(texts, seed=1)).sum()
    assert 380 < changed < 540  # 460 expected: 1 - (0.7^2 + 0.1^2 + 0.2^2)


def test_a_changed_share_leaves_the_other_split_alone():
    texts = random_texts(1000, 4)
    small, large = codes(texts), codes(texts, test_share=0.4)
    validation, test = SPLITS.index("validation"), SPLITS.index("test")
    assert ((small == validation) == (large == validation)).all()
    assert (large[small == test] == test).all()


# --- whole stage ------------------------------------------------------------------------------------------------------


def with_copies(count, seed):
    """Texts of which a tenth are copies with a few characters changed, each with the row id of its text."""
    texts = random_texts(count, seed)
    return texts + [varied(text, seed + i, changes=1 + i % 3) for i, text in enumerate(texts[: count // 10])]


def table(texts):
    """Row ids follow the text, as those of ingest do."""
    ids = [hashlib.sha256(text.encode()).hexdigest()[:16] for text in texts]
    return frame(texts, [LABELS[int(row_id, 16) % 2] for row_id in ids]).assign(row_id=ids)


@pytest.mark.parametrize("place", ["appended", "prepended", "shuffled in", "removed"])
def test_other_rows_move_no_row_between_splits(new_workspace, place):
    """A tenth more rows, near-duplicates of the old ones among them, or a tenth fewer."""
    old, new = with_copies(1000, 5), [*random_texts(60, 6), *(varied(text, i) for i, text in enumerate(random_texts(50, 5)))]
    rows = {
        "appended": lambda: table([*old, *new]),
        "prepended": lambda: table([*new, *old]),
        "shuffled in": lambda: table([*old, *new]).sample(frac=1.0, random_state=0),
        "removed": lambda: table(old).iloc[100:],
    }[place]()
    before, after = new_workspace(), new_workspace()
    run_split(before, table(old))
    run_split(after, rows)
    first, second = homes(before), homes(after)
    shared = set(first) & set(second)
    assert len(shared) == (1000 if place == "removed" else 1100)
    moved = {(first[row_id], second[row_id]) for row_id in shared if first[row_id] != second[row_id]}
    assert all("set_aside" in pair for pair in moved), moved
    assert sum(first[row_id] != second[row_id] for row_id in shared) < 40


def test_every_row_is_somewhere_once_and_in_order(workspace):
    rows = table(with_copies(2000, 7))
    report = run_split(workspace, rows)
    found = parts(workspace)
    assert sorted(row_id for part in found.values() for row_id in part["row_id"]) == sorted(rows["row_id"])
    places = {row_id: place for place, row_id in enumerate(rows["row_id"])}
    for name, part in found.items():
        assert part["row_id"].map(places).is_monotonic_increasing
        pd.testing.assert_frame_equal(
            part[list(rows.columns)], rows.iloc[part["row_id"].map(places)].reset_index(drop=True), check_dtype=False, obj=name
        )
    assert report["set_aside"] == {"near_duplicate_across_splits": len(found["set_aside"]), "in_external_test": 0}
    assert len(found["set_aside"]) > 20


def test_the_split_with_most_of_a_cluster_keeps_its_rows(workspace):
    """All clusters from comparing every pair; ties go to test, then validation."""
    texts = list(dict.fromkeys(with_copies(600, 8) + [varied(text, 99 + i) for i, text in enumerate(random_texts(60, 8))]))
    rows = table(texts)
    report = run_split(workspace, rows)
    cluster = components(len(texts), near_pairs(texts, 5, 0.8, 0.1))
    own = [SPLITS[code] for code in codes(texts)]
    counts = {number: Counter(own[i] for i in range(len(texts)) if cluster[i] == number) for number in set(cluster)}
    keeper = {number: max(TIES, key=lambda name, count=count: count[name]) for number, count in counts.items()}
    expected = {row_id: own[i] if own[i] == keeper[cluster[i]] else "set_aside" for i, row_id in enumerate(rows["row_id"])}
    assert homes(workspace) == expected
    assert any(len(set(count.values())) == 1 and len(count) > 1 for count in counts.values())  # there are ties
    near = report["near_duplicates"]
    assert near["distinct_texts"] == len(texts)
    assert near["clusters"] == sum(count.total() > 1 for count in counts.values())
    assert near["clusters_across_splits"] == sum(len(count) > 1 for count in counts.values())
    assert near["largest_cluster"] == max(count.total() for count in counts.values())
    aside = parts(workspace)["set_aside"]
    places = {row_id: place for place, row_id in enumerate(rows["row_id"])}
    for row in aside.itertuples():
        assert (row.split, row.rule) == (own[places[row.row_id]], "near_duplicate_across_splits")
        beside = row.reason.split("(")[1].split(")")[0]
        assert cluster[places[beside]] == cluster[places[row.row_id]]
        assert f"in the {expected[beside]} split stays" in row.reason


def test_equal_texts_of_several_origins_stay_in_one_split(workspace):
    shared, own = random_texts(40, 9), random_texts(400, 16)
    texts = [text for document in range(20) for text in (*shared, *own[20 * document : 20 * document + 20])]
    rows = frame(texts, origin=[f"document {i // 60}" for i in range(1200)])
    report = run_split(workspace, rows, validation_share=0.2, test_share=0.3)
    assert report["near_duplicates"]["largest_cluster"] == 20
    found = parts(workspace)
    for one, other in combinations(SPLITS, 2):
        assert not set(found[one]["text"]) & set(found[other]["text"])
        assert not set(found[one]["origin"]) & set(found[other]["origin"])
    assert set(found["set_aside"]["text"]) == set(shared)
    pairs = json.loads(workspace.path("leakage").read_text())["pairs"]
    assert {count for pair in pairs.values() for kind, count in pair.items() if kind != "examples"} == {0}


def test_rows_of_the_external_test_file_are_set_aside(workspace):
    texts = random_texts(400, 10, words=20)
    own = [SPLITS[code] for code in codes(texts)]
    taken = [texts[i].upper() if i % 2 else varied(texts[i], i) for i in range(100)]
    pd.DataFrame({"tweet": [*taken, None, "", *random_texts(30, 11)]}).to_json(workspace.root / "mine.jsonl", orient="records", lines=True)
    external = {"source": {"kind": "file", "path": "mine.jsonl"}, "fields": {"text": "tweet"}}
    report = run_split(workspace, frame(texts), external_test=external)
    expected = {f"r{i}" for i in range(100) if own[i] != "test"}
    found = parts(workspace)
    assert set(found["set_aside"]["row_id"]) == expected
    assert set(found["set_aside"]["rule"]) == {"in_external_test"}
    assert report["set_aside"]["in_external_test"] == len(expected) > 60
    assert {f"r{i}" for i in range(100) if own[i] == "test"} <= set(found["test"]["row_id"])
    leakage = json.loads(workspace.path("leakage").read_text())
    assert leakage["rows"]["external_test"] == 130
    assert list(leakage["pairs"]) == [
        "validation in train",
        "test in train",
        "test in validation",
        "external_test in train",
        "external_test in validation",
    ]
    assert {count for pair in leakage["pairs"].values() for kind, count in pair.items() if kind != "examples"} == {0}


def test_stage_report(new_workspace):
    reports = []
    rows = table(random_texts(1000, 12)).assign(source_row=range(1000), label_confidence=np.nan)
    for workspace in (new_workspace(), new_workspace()):
        reports.append(run_split(workspace, rows))
        written = {f"data/splits/tweet_sentiment/{name}.parquet" for name in (*SPLITS, "set_aside")} | {
            "data/validated/tweet_sentiment/accepted.parquet"
        }
        assert workspace.written() == written | {f"{name}.sha256" for name in written} | {
            "reports/tweet_sentiment/split.json",
            "reports/tweet_sentiment/leakage.json",
        }
        assert json.loads(workspace.path("split_report").read_text()) == reports[-1]
    assert reports[0] == reports[1]
    found = {name: pd.read_parquet(workspace.path(name)) for name in SPLITS}
    for name, part in found.items():
        entry = reports[0]["splits"][name]
        assert entry["sha256"] == hashlib.sha256(workspace.path(name).read_bytes()).hexdigest()
        assert entry["rows"] == len(part) == sum(entry["labels"].values())
        assert entry["labels"] == part["label"].value_counts().to_dict()
    canonical = json.dumps({name: sorted(part["row_id"]) for name, part in found.items()}, sort_keys=True, separators=(",", ":"))
    assert reports[0]["split_ids_sha256"] == hashlib.sha256(canonical.encode()).hexdigest()
    shares = reports[0]["label_shares"]
    for label in LABELS:
        for name, expected in (("train", 0.7), ("validation", 0.1), ("test", 0.2)):
            share = shares[label][name]
            total = int((rows["label"] == label).sum())
            assert share["share"] == pytest.approx((found[name]["label"] == label).sum() / total, abs=0.01)  # a few rows are set aside
            assert share["expected"] == pytest.approx(expected)
            assert share["standard_deviation"] == pytest.approx((expected * (1 - expected) / total) ** 0.5)
            assert abs(share["share"] - expected) < 5 * share["standard_deviation"]


def test_a_task_with_free_text_answers_has_no_label_shares(workspace):
    rows = frame(random_texts(200, 13)).rename(columns={"label": "target"})
    write_parquet(workspace.path("accepted"), rows)
    params = workspace.params()
    free = params.model_copy(update={"prompt": params.prompt.model_copy(update={"verbalizers": {}})})
    report = workspace.run("split", free)
    assert report["label_shares"] == {}
    assert sum(part["rows"] for part in report["splits"].values()) + sum(report["set_aside"].values()) == 200
    assert "target" in parts(workspace)["train"].columns


# --- shares -----------------------------------------------------------------------------------------------------------


def test_shares_hold_within_chance_per_label_and_by_origin():
    """The stated standard deviation is the one seen over many seeds, also where whole documents go to a split."""
    texts, origins = random_texts(600, 14), [f"document {int(i**0.5)}" for i in range(600)]
    answers = np.array([i % 3 == 0 for i in range(600)], dtype="int64")
    for given in (None, origins):
        shares = []
        for seed in range(150):
            columns = {"text": texts} | ({"origin": given} if given else {})
            rows = examine_rows(
                pa.Table.from_pydict(columns).to_batches(), DistinctTexts(), fields=["text"], params=options(seed=seed, ignored=[])
            )
            stated = label_shares(answers, rows, LABELS, options(seed=seed))["yes"]["test"]
            shares.append(stated["share"])
        assert np.mean(shares) == pytest.approx(0.2, abs=4 * stated["standard_deviation"] / 150**0.5)
        assert np.std(shares) == pytest.approx(stated["standard_deviation"], rel=0.2)


# --- what cannot be split ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["test", "validation"])
def test_a_split_without_a_label_is_an_error(workspace, name):
    texts = random_texts(300, 15)
    labels = ["no" if SPLITS[code] == name else LABELS[i % 2] for i, code in enumerate(codes(texts))]
    with pytest.raises(SplitError, match=rf"The {name} split .* of 300 .*'yes'.*split\.test_share"):
        run_split(workspace, frame(texts, labels))
    assert {path for path in workspace.written() if "splits" in path or "reports" in path} == set()


def test_no_rows_is_an_error(workspace):
    with pytest.raises(SplitError, match="0 of 0 accepted rows"):
        run_split(workspace, frame(["a"]).iloc[:0])


def test_an_empty_split_of_free_text_is_an_error():
    with pytest.raises(SplitError, match=r"The test split .0 of 7 accepted rows. has no row"):
        check_counts({"train": 7, "test": 0}, {"train": {}, "test": {}}, 7)


def test_a_missing_column_is_an_input_error(workspace):
    with pytest.raises(StageInputError, match=r"lacks the columns.*label"):
        run_split(workspace, frame(["a", "b"]).drop(columns="label"))
