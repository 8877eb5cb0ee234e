"""score: what the tuned prompt and its baselines answer to the same test rows.

The baselines are the best of the task's hard prompts, its own template without a soft prompt (zero-shot) and behind worked examples
(few-shot), a LoRA where one was trained, and the majority class. An encoder answers no hard prompt.
A task with free-text targets is scored by text_scoring.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.engine.base_model import BaseModel
from pipeline.engine.objectives import Classification
from pipeline.engine.predicting import Predictor, load_predictor
from pipeline.engine.ranking import Pass, Ranker, hard_prompt_ranker, pass_for
from pipeline.engine.scoring import classification_result
from pipeline.engine.template import Template
from pipeline.evaluation.predictions import scored_frame
from pipeline.examples import labelled_examples, rows_of, task_base_model, task_template, unlabelled_examples
from pipeline.few_shot import make_few_shot
from pipeline.layout import Paths
from pipeline.lora_baseline import lora_bundle, training_costs
from pipeline.manifest import verify_bundle
from pipeline.params import TaskParams
from pipeline.progress import Progress
from pipeline.records import read_json, read_parquet, write_json, write_parquet
from pipeline.text_scoring import score_text
from pipeline.variants import FEW_SHOT, HARD_PROMPT, LORA, MAJORITY_CLASS, TUNED, ZERO_SHOT, task_variants

ADAPTER_CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class _Asked:
    """One variant that the base model answers; `virtual_tokens` it reads beside those of the template's head and the row's own."""

    ranker: Ranker
    template: Template
    virtual_tokens: int = 0


def run(*, params: TaskParams, inputs: Paths, outputs: Paths) -> dict[str, Any]:
    """Choose the best hard prompt on `validation`, if any, score `test` with every variant, write `predictions` and `score_report`."""
    verify_bundle(inputs.bundle)
    if params.prompt.free_text:
        return score_text(params=params, inputs=inputs, outputs=outputs)
    columns = ["row_id", "label", *params.ingest.columns.fields]
    test, train = read_parquet(inputs.test, columns), read_parquet(inputs.train, columns)
    base = task_base_model(params)
    predictor = load_predictor(inputs.bundle, base=base)
    lora = lora_bundle(inputs.lora, wanted=params.lora_baseline.enabled)
    baselines = _Baselines(params, base, predictor)
    selection = min(params.score.hard_prompt_selection_rows, len(read_parquet(inputs.validation, ["row_id"])))
    passes = len(task_variants(params)) - 1
    with Progress("score", selection * len(params.prompt.hard_prompts) + passes * len(test), "row") as progress:
        candidates = baselines.compare_hard_prompts(inputs.validation, selection, progress)
        best = max(candidates, key=lambda candidate: candidate["accuracy"])["template"] if candidates else None
        few_shot = (
            make_few_shot(params, base, predictor.verbalizers, train, rows_of(test, predictor.template)) if _few_shot(params) else None
        )
        asked = {TUNED: _Asked(predictor.ranker, predictor.template, _virtual_tokens(inputs.bundle))}
        if best is not None:
            asked[HARD_PROMPT] = baselines.hard_prompt(best)
            asked[ZERO_SHOT] = asked[HARD_PROMPT] if best == params.prompt.template else baselines.hard_prompt(params.prompt.template)
        if few_shot and few_shot.skipped is None:
            asked[FEW_SHOT] = baselines.behind(few_shot.template)
        if lora is not None:
            tuned = load_predictor(lora, base=base)
            asked[LORA] = _Asked(tuned.ranker, tuned.template)
        answered = _answer(asked, test, params, progress)
    majority, shares = _majority_class(train, params)
    probabilities = {name: scores for name, (scores, _) in answered.items()} | {MAJORITY_CLASS: np.tile(shares, (len(test), 1))}
    settings: dict[str, Any] = {"fields": list(params.ingest.columns.fields), "labels": params.prompt.labels}
    frames = [scored_frame(test, variant=name, probabilities=scores, **settings) for name, scores in probabilities.items()]
    write_parquet(outputs.predictions, pd.concat(frames, ignore_index=True))
    report = {
        "hard_prompt": best,
        "hard_prompts": candidates,
        "few_shot": few_shot.described() if few_shot else None,
        "majority_class": majority,
        "rows": len(test),
        "seconds_per_row": {name: seconds for name, (_, seconds) in answered.items()},
        "tokens_per_row": {name: _tokens_per_row(one, test) for name, one in asked.items()},
        "training_cost": training_costs(inputs, lora),
    }
    write_json(outputs.score_report, report)
    return report


@dataclass(frozen=True)
class _Baselines:
    """Hard prompts on the task's base model, which is asked through the same pass for all of them."""

    params: TaskParams
    base: BaseModel
    predictor: Predictor

    def hard_prompt(self, text: str) -> _Asked:
        return self.behind(task_template(self.params, self.base, text))

    def behind(self, template: Template) -> _Asked:
        through: Pass = pass_for(self.base)
        objective = Classification(self.predictor.verbalizers, self.params.prompt.length_normalisation)
        return _Asked(hard_prompt_ranker(self.base, template.head, objective, through), template)

    def compare_hard_prompts(self, validation: Path, rows: int, progress: Progress) -> list[dict[str, Any]]:
        """Accuracy of each candidate hard prompt on a sample of `rows` validation rows: the test split chooses nothing."""
        compared: list[dict[str, Any]] = []
        for text in self.params.prompt.hard_prompts:
            asked = self.hard_prompt(text)
            examples = labelled_examples(validation, asked.template, self.params, at_most=rows)
            scores = asked.ranker.rank(examples, batch_size=self.params.score.batch_size, advance=progress.advance)
            result = classification_result(scores, [example.label for example in examples])
            compared.append({"template": text, "accuracy": result.accuracy, "rows": result.rows})
        return compared


def _few_shot(params: TaskParams) -> bool:
    return FEW_SHOT in task_variants(params)


def _answer(
    asked: dict[Any, _Asked], test: pd.DataFrame, params: TaskParams, progress: Progress
) -> dict[str, tuple[NDArray[np.float32], float]]:
    """Label probabilities [N, K] of each variant and seconds per row; two variants that are the same prompt are asked once."""
    answered: dict[str, tuple[NDArray[np.float32], float]] = {}
    by_prompt: dict[int, tuple[NDArray[np.float32], float]] = {}
    for name, one in asked.items():
        if id(one) not in by_prompt:
            started = time.perf_counter()
            examples = unlabelled_examples(test, one.template)
            scores = one.ranker.rank(examples, batch_size=params.score.batch_size, advance=progress.advance)
            by_prompt[id(one)] = (scores.exp().numpy(), (time.perf_counter() - started) / len(test))
        answered[name] = by_prompt[id(one)]
    return answered


def _virtual_tokens(bundle: Path) -> int:
    """How many virtual tokens the bundle's adapter puts in front of every row; LoRA none."""
    return int(read_json(bundle / ADAPTER_CONFIG).get("num_virtual_tokens") or 0)


def _tokens_per_row(asked: _Asked, test: pd.DataFrame) -> float:
    """Mean number of tokens, virtual ones included, that the base model attends to before it answers a row."""
    own = [len(ids) for ids in asked.template.encode(rows_of(test, asked.template))]
    return asked.virtual_tokens + len(asked.template.head) + float(np.mean(own))


def _majority_class(train: pd.DataFrame, params: TaskParams) -> tuple[str, NDArray[np.float64]]:
    """The commonest label of the training split (ties: the first of the label set) and the label shares [C]."""
    counts = train["label"].value_counts()
    labels: Sequence[str] = params.prompt.labels
    shares = np.array([float(counts.get(label, 0)) for label in labels])
    return labels[int(shares.argmax())], shares / shares.sum()
