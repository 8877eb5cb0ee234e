"""The demo task as the benchmarks use it: its base model, its template, its tweets, and longer texts made of them."""

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.arms import Task
from pipeline.data.deduplication import has_conflict, is_repetition, text_keys
from pipeline.data.sources import draw_sample, read_source
from pipeline.data.splitting import split_rows
from pipeline.engine.base_model import BaseModel, load_base_model
from pipeline.engine.batching import Example
from pipeline.engine.template import Template, compile_template, compile_verbalizers
from pipeline.layout import find_root
from pipeline.params import TaskParams, load_task

TASK = "tweet_sentiment"
SHORTEST_LONG, LONGEST_LONG = 100, 300  # tokens of the longer texts, drawn evenly


@dataclass(frozen=True)
class Demo:
    """The demo's params, its base model's source, and its rows by split; a text of one split stands in no other."""

    params: TaskParams
    source: dict[str, Any]
    splits: dict[str, pd.DataFrame]

    def load(self, dtype: str) -> BaseModel:
        """The base model in a data type."""
        return load_base_model(source=self.source, dtype=dtype)

    def task(self, base: BaseModel) -> Task:
        """The demo's template and verbalizers on `base`."""
        verbalizers = compile_verbalizers(tokenizer=base.tokenizer, verbalizers=self.params.prompt.verbalizers)
        return Task(base, self.template(base).head, verbalizers)

    def template(self, base: BaseModel, maximum_field_tokens: int | None = None) -> Template:
        """The demo's template, by default with its limit of tokens."""
        limit = maximum_field_tokens or self.params.prompt.maximum_field_tokens
        return compile_template(tokenizer=base.tokenizer, template=self.params.prompt.template, maximum_field_tokens=limit)

    def tweets(self, base: BaseModel, split: str, at_most: int | None = None) -> list[Example]:
        """The tweets of a split, the first `at_most` of them by row id, which is a hash and so a random order."""
        rows = self.splits[split].sort_values("row_id").head(at_most or len(self.splits[split]))
        return _examples(self.template(base), rows["text"].to_list(), [self._label(name) for name in rows["label"]])

    def longer_texts(self, base: BaseModel) -> list[Example]:
        """Tweets of the training split joined to texts of 100 to 300 tokens, each with the label of its last tweet.

        They stand in for reviews or reports, whose length they have; the label makes them no better and no slower to train on.
        """
        rows = self.splits["train"].sort_values("row_id")
        counts = [len(ids) for ids in base.tokenizer(rows["text"].to_list(), add_special_tokens=False)["input_ids"]]
        randomness = random.Random(0)
        texts: list[str] = []
        labels: list[int] = []
        parts: list[str] = []
        tokens, wanted = 0, randomness.randint(SHORTEST_LONG, LONGEST_LONG)
        for text, label, count in zip(rows["text"], rows["label"], counts, strict=True):
            parts.append(text)
            tokens += count
            if tokens >= wanted:
                texts.append(" ".join(parts))
                labels.append(self._label(label))
                parts, tokens, wanted = [], 0, randomness.randint(SHORTEST_LONG, LONGEST_LONG)
        return _examples(self.template(base, LONGEST_LONG), texts, labels)

    def _label(self, name: str) -> int:
        return self.params.prompt.labels.index(name)


def load_demo(options: argparse.Namespace) -> Demo:
    """The demo task with the base model the options name."""
    root = find_root(Path(__file__).resolve().parent)
    params = load_task(root / "params.yaml", TASK)
    source = params.base_model.source.model_dump()
    if options.model is not None:
        source = {"kind": "directory", "id": options.model.name, "path": str(options.model)}
    rows = draw_sample(_usable(params, root), sample_rows=options.rows, seed=0)
    splits = split_rows(rows, fields=tuple(params.ingest.columns.fields), labels=params.prompt.labels, params=params.split)
    return Demo(params, source, splits)


def _usable(params: TaskParams, root: Path) -> pd.DataFrame:
    """Rows that have a text and a label of the set, are labelled with confidence, and repeat or contradict no other row."""
    rows = read_source(params.ingest.source, params.ingest.columns, root=root).rows.dropna(subset=["text", "label"])
    sure = ~(rows["label_confidence"] < params.validate_.minimum_label_confidence)
    rows = rows[sure & rows["label"].isin(params.prompt.labels) & (rows["text"].str.len() <= params.validate_.maximum_text_characters)]
    keys = text_keys(rows, ["text"])
    return rows[~is_repetition(keys, rows["label"]) & ~has_conflict(keys, rows["label"])]


def _examples(template: Template, texts: Sequence[str], labels: Sequence[int]) -> list[Example]:
    rows = [{"text": text} for text in texts]
    return [Example(ids, label) for ids, label in zip(template.encode(rows), labels, strict=True)]
