"""split: together, stable, with every label, and of the asked size on average."""

import hashlib
import json

import pandas as pd
import pytest

from pipeline.data.splitting import SPLITS, position, split_rows
from pipeline.errors import SplitError
from pipeline.params import SplitParams

LABELS = ("no", "yes")


def rows(count, start=0):
    numbers = range(start, start + count)
    return pd.DataFrame(
        {"row_id": [f"r{i}" for i in numbers], "text": [f"Text {i}" for i in numbers], "label": [LABELS[i % 2] for i in numbers]}
    )


def split(frame, **options):
    params = SplitParams(**{"validation_share": 0.1, "test_share": 0.2, "seed": 0, **options})
    return split_rows(frame, fields=["text"], labels=LABELS, params=params)


def homes(splits):
    return {row_id: name for name, frame in splits.items() for row_id in frame["row_id"]}


def test_every_row_has_one_split_and_keeps_its_order():
    frame = rows(2000)
    splits = split(frame)
    assert tuple(splits) == SPLITS
    assert sum(len(part) for part in splits.values()) == 2000
    assert set(homes(splits)) == set(frame["row_id"])
    for part in splits.values():
        assert part["row_id"].str[1:].astype(int).is_monotonic_increasing


def test_shares_hold_within_chance_overall_and_per_label():
    splits = split(rows(20_000))
    for name, share in (("test", 0.2), ("validation", 0.1)):
        for label in (*LABELS, None):
            part = splits[name] if label is None else splits[name][splits[name]["label"] == label]
            total = 20_000 if label is None else 10_000
            assert abs(len(part) - share * total) < 5 * (total * share * (1 - share)) ** 0.5


def test_adding_or_removing_rows_moves_no_row():
    before = homes(split(rows(1000)))
    after = homes(split(pd.concat([rows(100, start=5000), rows(1000)], ignore_index=True)))
    assert {row_id: after[row_id] for row_id in before} == before
    fewer = homes(split(rows(1000).iloc[::2].assign(label=[LABELS[i % 2] for i in range(500)])))
    assert all(before[row_id] == name for row_id, name in fewer.items())


def test_rows_with_the_same_normalised_text_stay_together():
    copies = pd.concat([rows(500), rows(500).assign(row_id=lambda f: "copy" + f["row_id"], text=lambda f: f["text"].str.upper() + "  ")])
    found = homes(split(copies.reset_index(drop=True)))
    assert all(found[f"copyr{i}"] == found[f"r{i}"] for i in range(500))


def test_another_seed_splits_otherwise():
    first, second = homes(split(rows(1000))), homes(split(rows(1000), seed=1))
    assert 300 < sum(first[row_id] != second[row_id] for row_id in first) < 600  # 460 expected


def test_a_changed_share_leaves_the_other_split_alone():
    small, large = split(rows(1000)), split(rows(1000), test_share=0.4)
    assert small["validation"].equals(large["validation"])
    assert set(small["test"]["row_id"]) < set(large["test"]["row_id"])


def test_position_is_fixed_for_all_time():
    """Written out by another route: the leading 53 bits of sha256("0/text")."""
    bits = bin(int(hashlib.sha256(b"0/text").hexdigest(), 16))[2:].zfill(256)[:53]
    assert position("text", 0) == int(bits, 2) / 2**53


@pytest.mark.parametrize("name", ["test", "validation"])
def test_a_split_without_a_label_is_an_error(name):
    home = homes(split(rows(1000)))
    lacking = rows(1000).assign(
        label=lambda f: ["no" if home[row_id] == name else label for row_id, label in zip(f["row_id"], f["label"], strict=True)]
    )
    with pytest.raises(SplitError, match=rf"The {name} split .* of 1000 .*'yes'.*split\.test_share"):
        split(lacking)


def test_no_rows_is_an_error():
    with pytest.raises(SplitError, match="0 of 0 accepted rows"):
        split(rows(10).iloc[:0])


def test_stage(new_workspace):
    reports = []
    for workspace in (new_workspace(), new_workspace()):
        params = workspace.params(prompt={"verbalizers": {"no": " no", "yes": " yes"}})
        workspace.path("accepted").parent.mkdir(parents=True)
        rows(1000).to_parquet(workspace.path("accepted"), index=False)
        reports.append(workspace.run("split", params))
        assert workspace.written() == {
            "data/validated/tweet_sentiment/accepted.parquet",
            *(f"data/splits/tweet_sentiment/{name}.parquet" for name in SPLITS),
            "reports/tweet_sentiment/split.json",
        }
        assert json.loads(workspace.path("split_report").read_text()) == reports[-1]
    assert reports[0] == reports[1]
    parts = {name: pd.read_parquet(workspace.path(name)) for name in SPLITS}
    for name, part in parts.items():
        entry = reports[0]["splits"][name]
        assert entry["sha256"] == hashlib.sha256(workspace.path(name).read_bytes()).hexdigest()
        assert entry["rows"] == len(part) == sum(entry["labels"].values())
    canonical = json.dumps({name: sorted(part["row_id"]) for name, part in parts.items()}, sort_keys=True, separators=(",", ":"))
    assert reports[0]["split_ids_sha256"] == hashlib.sha256(canonical.encode()).hexdigest()


def test_a_failed_split_writes_nothing(workspace):
    workspace.path("accepted").parent.mkdir(parents=True)
    rows(3).to_parquet(workspace.path("accepted"), index=False)
    with pytest.raises(SplitError):
        workspace.run("split", workspace.params(prompt={"verbalizers": {"no": " no", "yes": " yes"}}))
    assert workspace.written() == {"data/validated/tweet_sentiment/accepted.parquet"}
