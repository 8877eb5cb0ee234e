"""The demo task as the benchmarks use it: its base model, its template, its tweets, and longer texts made of them."""

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd

from benchmarks.arms import Task
from pipeline.data.splitting import SPLITS
from pipeline.engine.base_model import BaseModel, load_base_model
from pipeline.engine.batching import Example
from pipeline.engine.template import Template, compile_template, compile_verbalizers
from pipeline.layout import PARAMS_FILE, Layout, find_root, stage_named
from pipeline.params import TaskParams, load_task
from pipeline.records import read_parquet
from pipeline.stages import ingest, split, validate

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
    return Demo(params, source, _splits(params, options.rows))


def _splits(params: TaskParams, rows: int) -> dict[str, pd.DataFrame]:
    """What the data stages make of `rows` tweets of the source."""
    limits = params.validate_.model_copy(update={"minimum_rows": 1})
    drawn = params.model_copy(update={"ingest": params.ingest.model_copy(update={"sample_rows": rows}), "validate_": limits})
    with TemporaryDirectory() as folder:
        (Path(folder) / PARAMS_FILE).touch()  # what a stage takes for the root
        layout = Layout(Path(folder), TASK)
        for name, stage in (("ingest", ingest), ("validate", validate), ("split", split)):
            declared = stage_named(name)
            stage.run(params=drawn, inputs=layout.inputs(declared), outputs=layout.outputs(declared))
        return {name: read_parquet(layout.path(name)) for name in SPLITS}


def _examples(template: Template, texts: Sequence[str], labels: Sequence[int]) -> list[Example]:
    rows = [{"text": text} for text in texts]
    return [Example(ids, label) for ids, label in zip(template.encode(rows), labels, strict=True)]
