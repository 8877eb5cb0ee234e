"""score: predictions of the tuned prompt, of the best hard prompt and of the majority class on the same test rows.

An encoder answers no hard prompt: then there are two variants.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.engine.base_model import BaseModel
from pipeline.engine.objectives import Classification
from pipeline.engine.predicting import load_predictor
from pipeline.engine.ranking import Pass, Ranker, hard_prompt_ranker, pass_for
from pipeline.engine.scoring import classification_result
from pipeline.engine.template import Template
from pipeline.examples import labelled_examples, task_base_model, task_template, unlabelled_examples
from pipeline.layout import Paths
from pipeline.manifest import verify_bundle
from pipeline.params import TaskParams
from pipeline.progress import Progress
from pipeline.records import read_parquet, write_json, write_parquet


def run(*, params: TaskParams, inputs: Paths, outputs: Paths) -> dict[str, Any]:
    """Choose the best hard prompt on `validation`, if any, score `test` with every variant, write `predictions` and `score_report`."""
    verify_bundle(inputs.bundle)
    test = read_parquet(inputs.test, ["row_id", "label", *params.ingest.columns.fields])
    selection = min(params.score.hard_prompt_selection_rows, len(read_parquet(inputs.validation, ["row_id"])))
    base = task_base_model(params)
    predictor = load_predictor(inputs.bundle, base=base)
    objective = Classification(predictor.verbalizers, params.prompt.length_normalisation)
    through = pass_for(base)
    hard_prompts = params.prompt.hard_prompts
    with Progress("score", selection * len(hard_prompts) + (2 if hard_prompts else 1) * len(test), "row") as progress:
        candidates = _compare_hard_prompts(params, inputs.validation, base, objective, through, selection, progress)
        best = max(candidates, key=lambda candidate: candidate["accuracy"])["template"] if candidates else None
        variants = {"tuned": (predictor.ranker, predictor.template)}
        if best is not None:
            variants["hard_prompt"] = _hard_prompt(params, base, objective, through, best)
        frames: list[pd.DataFrame] = []
        seconds: dict[str, float] = {}
        for name, (ranker, template) in variants.items():
            started = time.perf_counter()
            scores = ranker.rank(unlabelled_examples(test, template), batch_size=params.score.batch_size, advance=progress.advance)
            seconds[name] = (time.perf_counter() - started) / len(test)
            frames.append(_frame(name, test, params, scores.exp().numpy()))
    majority, shares = _majority_class(inputs.train, params)
    frames.append(_frame("majority_class", test, params, np.tile(shares, (len(test), 1))))
    write_parquet(outputs.predictions, pd.concat(frames, ignore_index=True))
    report = {
        "hard_prompt": best,
        "hard_prompts": candidates,
        "majority_class": majority,
        "rows": len(test),
        "seconds_per_row": seconds,
    }
    write_json(outputs.score_report, report)
    return report


def _compare_hard_prompts(
    params: TaskParams, validation: Path, base: BaseModel, objective: Classification, through: Pass, rows: int, progress: Progress
) -> list[dict[str, Any]]:
    """Accuracy of each candidate hard prompt on a sample of `rows` validation rows: the test split chooses nothing."""
    compared: list[dict[str, Any]] = []
    for text in params.prompt.hard_prompts:
        ranker, template = _hard_prompt(params, base, objective, through, text)
        examples = labelled_examples(validation, template, params, at_most=rows)
        scores = ranker.rank(examples, batch_size=params.score.batch_size, advance=progress.advance)
        result = classification_result(scores, [example.label for example in examples])
        compared.append({"template": text, "accuracy": result.accuracy, "rows": result.rows})
    return compared


def _hard_prompt(params: TaskParams, base: BaseModel, objective: Classification, through: Pass, text: str) -> tuple[Ranker, Template]:
    template = task_template(params, base, text)
    return hard_prompt_ranker(base, template.head, objective, through), template


def _majority_class(train: Path, params: TaskParams) -> tuple[str, NDArray[np.float64]]:
    """The commonest label of the training split (ties: the first of the label set) and the label shares [C]."""
    counts = read_parquet(train, ["label"])["label"].value_counts()
    shares = np.array([float(counts.get(label, 0)) for label in params.prompt.labels])
    return params.prompt.labels[int(shares.argmax())], shares / shares.sum()


def _frame(variant: str, test: pd.DataFrame, params: TaskParams, probabilities: NDArray[np.floating[Any]]) -> pd.DataFrame:
    labels: Sequence[str] = params.prompt.labels
    fields = [test[name] for name in params.ingest.columns.fields]
    return pd.DataFrame(
        {
            "row_id": test["row_id"],
            "variant": variant,
            "text": ["\n".join(values) for values in zip(*fields, strict=True)],
            "label": test["label"],
            "prediction": [labels[index] for index in probabilities.argmax(axis=1)],
            **{f"p.{label}": probabilities[:, index].astype(float) for index, label in enumerate(labels)},
        }
    )
