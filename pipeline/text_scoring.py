"""score, for a task with free-text targets: the answers of the tuned prompt, the best hard prompt and a trivial baseline."""

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median_low
from typing import Any

import pandas as pd

from pipeline.engine.base_model import BaseModel
from pipeline.engine.predicting import load_text_predictor
from pipeline.engine.template import Template
from pipeline.engine.writing import Answer, Writer, generation_examples, make_writer
from pipeline.evaluation.row_scores import row_scores
from pipeline.examples import rows_of, task_base_model, task_template, writing_settings
from pipeline.layout import Paths
from pipeline.lora_baseline import training_costs
from pipeline.params import TaskParams, placeholders
from pipeline.progress import Progress
from pipeline.records import read_parquet, write_json, write_parquet


def score_text(*, params: TaskParams, inputs: Paths, outputs: Paths) -> dict[str, Any]:
    """Choose the best hard prompt on `validation`, answer `test` with every variant, write `predictions` and `score_report`.

    `inputs.bundle` must have been verified.
    """
    test = read_parquet(inputs.test, ["row_id", "target", *params.ingest.columns.fields])
    base = task_base_model(params)
    predictor = load_text_predictor(inputs.bundle, base=base)
    validation = read_parquet(inputs.validation, ["row_id", "target", *params.ingest.columns.fields])
    # The smallest row ids: hashes of the content, so a random sample (see examples.labelled_examples).
    selection = validation.sort_values("row_id").head(params.score.hard_prompt_selection_rows)
    hard_prompts = params.prompt.hard_prompts
    variants: dict[str, tuple[Writer, Template]] = {"tuned": (predictor.writer, predictor.template)}
    frames: list[pd.DataFrame] = []
    seconds: dict[str, float] = {}
    tokens: dict[str, float] = {}
    with Progress("score", len(selection) * len(hard_prompts) + 2 * len(test), "row") as progress:
        candidates = [_compare(params, base, text, selection, progress) for text in hard_prompts]
        best = max(candidates, key=lambda candidate: candidate[params.prompt.generation_settings.metric])["template"]
        variants["hard_prompt"] = _hard_prompt(params, base, best)
        for name, (writer, template) in variants.items():
            started = time.perf_counter()
            prompts = template.encode(rows_of(test, template))
            answers = writer.write(prompts, batch_size=params.score.batch_size, advance=progress.advance)
            seconds[name] = (time.perf_counter() - started) / len(test)
            tokens[name] = _tokens_per_row(writer, prompts, answers)
            frames.append(written_frame(name, test, params, answers, *_losses(params, writer, template, test)))
    trivial = params.prompt.generation_settings.baseline
    answers, said = _trivial_answers(params, inputs.train, test)
    frames.append(written_frame(trivial, test, params, answers, None, frames[0]["reference_tokens"].tolist()))
    write_parquet(outputs.predictions, pd.concat(frames, ignore_index=True))
    report = {
        "hard_prompt": best,
        "hard_prompts": candidates,
        "trivial_baseline": trivial,
        "trivial_answer": said,
        "rows": len(test),
        "seconds_per_row": seconds,
        "tokens_per_row": tokens,
        "training_cost": training_costs(inputs, None),
    }
    write_json(outputs.score_report, report)
    return report


def _tokens_per_row(writer: Writer, prompts: Sequence[Sequence[int]], answers: Sequence[Answer]) -> float:
    """Mean over the rows of what a row takes: soft prompt, template, fields and answer."""
    own = sum(len(prompt) for prompt in prompts) + sum(answer.tokens for answer in answers)
    return writer.prefix.lengths[0] + own / len(prompts)


def _compare(params: TaskParams, base: BaseModel, text: str, rows: pd.DataFrame, progress: Progress) -> dict[str, Any]:
    """A candidate hard prompt and its mean of the task's metric on validation rows: the test split chooses nothing."""
    writer, template = _hard_prompt(params, base, text)
    prompts = template.encode(rows_of(rows, template))
    answers = writer.write(prompts, batch_size=params.score.batch_size, advance=progress.advance)
    metric = params.prompt.generation_settings.metric
    scores = row_scores([answer.text for answer in answers], rows["target"].tolist())[metric]
    return {"template": text, metric: float(scores.mean()), "rows": len(rows)}


def _hard_prompt(params: TaskParams, base: BaseModel, text: str) -> tuple[Writer, Template]:
    template = task_template(params, base, text)
    return make_writer(base, None, template.head, writing_settings(params)), template


def _losses(params: TaskParams, writer: Writer, template: Template, test: pd.DataFrame) -> tuple[list[float], list[int]]:
    """The mean loss of each reference's tokens in nats, and how many tokens those are."""
    examples = generation_examples(writer.base, template, rows_of(test, template), test["target"].tolist(), writing_settings(params))
    return writer.losses(examples, batch_size=params.score.batch_size), [len(example.target_ids) for example in examples]


def _trivial_answers(params: TaskParams, train: Path, test: pd.DataFrame) -> tuple[list[Answer], str | None]:
    """What can be answered without a model, and the one answer where it is the same for all rows (ties: the first by alphabet)."""
    targets = read_parquet(train, ["target"])["target"].tolist()
    if params.prompt.generation_settings.baseline == "commonest_target":
        commonest = min(Counter(targets).items(), key=lambda item: (-item[1], item[0]))[0]
        return [Answer(commonest, 0, True)] * len(test), commonest
    words = median_low(len(target.split()) for target in targets)
    field = placeholders(params.prompt.template)[0]
    return [Answer(" ".join(str(text).split()[:words]), 0, True) for text in test[field]], None


def written_frame(
    variant: str, test: pd.DataFrame, params: TaskParams, answers: list[Answer], losses: list[float] | None, tokens: list[int]
) -> pd.DataFrame:
    """The answers of one variant to `test`, in the long format of docs/stage-files.md; `tokens` are those of the references."""
    fields = [test[name] for name in params.ingest.columns.fields]
    return pd.DataFrame(
        {
            "row_id": test["row_id"],
            "variant": variant,
            "text": ["\n".join(values) for values in zip(*fields, strict=True)],
            "target": test["target"],
            "prediction": [answer.text for answer in answers],
            "tokens": [answer.tokens for answer in answers],
            "ended": [answer.ended for answer in answers],
            "reference_loss": pd.Series(losses, dtype="float64") if losses else pd.Series([None] * len(test), dtype="float64"),
            "reference_tokens": tokens,
        }
    )
