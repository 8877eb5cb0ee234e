"""The few-shot baseline: worked examples from the training split in front of the task's own template."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.engine.base_model import BaseModel
from pipeline.engine.template import Template, Verbalizers, few_shot_template
from pipeline.params import TaskParams

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class FewShot:
    """The compiled template and the row ids of its worked examples, in the order shown; `skipped` says why it cannot be asked."""

    template: Template
    row_ids: tuple[str, ...]
    skipped: str | None

    def described(self) -> dict[str, Any]:
        """What the score report says of it."""
        return {"examples": list(self.row_ids), "prefix_tokens": len(self.template.head), "skipped": self.skipped}


def make_few_shot(
    params: TaskParams, base: BaseModel, verbalizers: Verbalizers, train: "pd.DataFrame", test: Sequence[dict[str, str]]
) -> FewShot:
    """The task's template behind `score.few_shot_per_label` worked examples per label, drawn from `train`, for the rows of `test`."""
    prompt, score = params.prompt, params.score
    drawn = draw_examples(train, params.prompt.labels, score.few_shot_per_label, score.few_shot_seed)
    fields = list(params.ingest.columns.fields)
    worked = [({name: str(row[name]) for name in fields}, prompt.verbalizers[str(row["label"])]) for row in drawn]
    template = few_shot_template(
        tokenizer=base.tokenizer,
        template=prompt.template,
        maximum_field_tokens=prompt.maximum_field_tokens,
        worked=worked,
        closed=base.architecture != "decoder",
    )
    longest = max((len(ids) for ids in template.encode(test)), default=0)
    needed = len(template.head) + longest + max(map(len, verbalizers.token_ids))
    skipped = None
    if needed > base.context_length:
        skipped = f"with {len(worked)} worked examples the longest row needs {needed} tokens, {base.source['id']} attends to {base.context_length}"
    return FewShot(template, tuple(str(row["row_id"]) for row in drawn), skipped)


def draw_examples(train: "pd.DataFrame", labels: Sequence[str], per_label: int, seed: int) -> list[dict[str, Any]]:
    """Up to `per_label` rows of each label, mixed: both draw and order follow the hash of seed and row id, so that added rows move little."""
    ranked = train.assign(_rank=[hashlib.sha256(f"{seed}:{row_id}".encode()).hexdigest() for row_id in train["row_id"]])
    ranked = ranked[ranked["label"].isin(list(labels))].sort_values("_rank")
    drawn = ranked.groupby("label", sort=False).head(per_label).drop(columns="_rank")
    return [{str(key): value for key, value in row.items()} for row in drawn.to_dict("records")]
