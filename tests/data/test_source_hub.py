"""Hub data sets: the real loading code on local folders, and what is told when a name, split, revision or package is wrong."""

import json
import sys

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import SourceError
from tests.data.source_reading import nulls_as_none, read

datasets = pytest.importorskip("datasets", reason="the extra hub is not installed")

CLASSES = {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["negative", "positive"])}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A data set in the hub's layout, with class labels and two splits; the library's cache beside it."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "reviews" / "data").mkdir(parents=True)
    datasets.disable_progress_bars()
    for split, texts in {"train": ["good", "bad", "unknown"], "test": ["fine"]}.items():
        rows = {"text": texts, "label": [1, 0, -1][: len(texts)]}
        made = datasets.Dataset.from_dict(rows, features=datasets.Features(CLASSES))
        made.to_parquet(tmp_path / "reviews" / "data" / f"{split}-00000-of-00001.parquet")
    datasets.enable_progress_bars()
    return tmp_path


def source(**options):
    return {"kind": "hub_dataset", "name": "./reviews", "split": "train", **options}


def test_class_labels_become_their_names(folder):
    rows, facts = read(source(), root=folder)
    assert rows["text"].tolist() == ["good", "bad", "unknown"]
    assert nulls_as_none(rows["label"]) == ["positive", "negative", None]
    assert facts.format == "hub_dataset"
    assert facts.sha256_of == "rows"
    assert facts.fingerprint
    test, other = read(source(split="test"), root=folder)
    assert test["label"].tolist() == ["positive"]
    assert other.fingerprint != facts.fingerprint
    assert other.sha256 != facts.sha256


def test_the_same_rows_have_the_ids_and_the_sha256_of_the_rows(folder):
    _, first = read(source(), root=folder)
    pd.DataFrame({"text": ["good", "bad", "unknown"], "label": ["positive", "negative", None]}).to_csv(folder / "in.csv", index=False)
    from_file, _ = read({"path": "in.csv"}, root=folder)
    from_hub, second = read(source(), root=folder)
    assert from_hub["row_id"].tolist() == from_file["row_id"].tolist()
    assert first == second


def test_many_rows_come_in_blocks_from_memory_mapped_files(folder):
    count = 9_000
    rows = "".join(json.dumps({"text": f"text {i}", "label": f"l{i % 3}"}) + "\n" for i in range(count))
    (folder / "many").mkdir()
    (folder / "many" / "train.jsonl").write_text(rows)
    found, facts = read(source(name="./many"), root=folder)
    assert found["text"].tolist() == [f"text {i}" for i in range(count)]
    assert facts.rows == count
    with pytest.raises(SourceError, match=r"ingest\.maximum_rows"):
        read(source(name="./many"), root=folder, maximum_rows=count - 1)
    with pytest.raises(SourceError, match=r"ingest\.maximum_bytes"):
        read(source(name="./many"), root=folder, maximum_bytes=count)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "./nothing"}, "nothing is no folder"),
        ({"split": "validation"}, 'Unknown split "validation"'),
        ({"config": "english"}, "BuilderConfig 'english' not found"),
    ],
)
def test_errors_name_the_data_set(folder, options, words):
    with pytest.raises(SourceError, match=r"ingest\.source") as caught:
        read(source(**options), root=folder)
    assert words in str(caught.value)


def test_a_missing_column_is_named(folder):
    with pytest.raises(SourceError, match=r"The data set ./reviews \(split train\) has no column 'sentiment'; it has 'text', 'label'"):
        read(source(), {"fields": {"text": "text"}, "label": "sentiment"}, root=folder)


def test_formats_that_unpack_more_than_tables_are_refused(folder):
    (folder / "archive").mkdir()
    (folder / "archive" / "train.xml").write_text("<a/>")
    with pytest.raises(SourceError, match=r"is stored as 'xml', expected one of"):
        read(source(name="./archive"), root=folder)


def test_a_loading_script_is_never_run(folder):
    (folder / "script").mkdir()
    (folder / "script" / "script.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
    with pytest.raises(SourceError, match="cannot be loaded"):
        read(source(name="./script"), root=folder)
    assert not (folder / "ran").exists()


def test_a_folder_never_stands_in_for_a_name_on_the_hub(folder, monkeypatch):
    monkeypatch.chdir(folder)
    with pytest.raises(SourceError, match="a file or folder of that name lies here"):
        read(source(name="reviews", revision="v1"), root=folder)


def test_the_missing_extra_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SourceError, match=r"pip install promptmill\[hub\]"):
        read(source(), root=folder)


def test_without_a_network_the_hub_is_named(monkeypatch, tmp_path):
    """What HF_HUB_OFFLINE=1 sets; the two libraries read it once, when they are imported."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    with pytest.raises(SourceError, match=r"The data set owner/name \(split train, v1\) cannot be loaded.*check the network"):
        read(source(name="owner/name", revision="v1"), root=tmp_path)


def test_progress_bars_are_left_as_they_were(folder):
    assert datasets.is_progress_bar_enabled()
    read(source(), root=folder)
    assert datasets.is_progress_bar_enabled()


def test_a_number_beyond_the_class_labels_is_refused(folder):
    """The data file is altered behind the back of its metadata, which still lists two labels."""
    path = folder / "reviews" / "data" / "train-00000-of-00001.parquet"
    stored = pq.read_table(path)
    pq.write_table(stored.set_column(1, stored.schema.field("label"), pa.array([0, 5, 1], pa.int64())), path)
    with pytest.raises(SourceError, match=r"The data set ./reviews \(split train\)"):
        read(source(), root=folder)
