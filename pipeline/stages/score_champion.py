"""Stage score_champion: what the champion answers to the candidate's test rows, on the base model it was tuned on."""

from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.evaluation.predictions import CHAMPION_VARIANT, scored_frame
from pipeline.layout import Paths
from pipeline.manifest import verify_bundle
from pipeline.params import TaskParams
from pipeline.progress import Progress
from pipeline.records import read_json, read_parquet, write_json, write_parquet
from pipeline.registry.reference import BUNDLE_FOLDER, CHAMPION_FILE

if TYPE_CHECKING:
    import pandas as pd

    from pipeline.engine.base_model import BaseModel


def run(*, params: TaskParams, inputs: Paths, outputs: Paths) -> dict[str, Any]:
    """Write `champion_predictions`, without rows where there is no champion or it cannot answer, and `champion_report` with the reason.

    Raises BundleError when the champion's files are altered or its base model is another now, BaseModelError when that is not installed.
    """
    champion = read_json(inputs.champion / CHAMPION_FILE)
    report: dict[str, Any] = {"task": outputs.champion_report.parent.name, **champion, "base_model_id": None, "comparable": False}
    manifest: dict[str, Any] = {}
    if champion["version"] is not None:
        manifest = verify_bundle(inputs.champion / BUNDLE_FOLDER)
        report["base_model_id"] = manifest.get("base_model", {}).get("id")
        report["reason"] = why_not(manifest, params)
        report["comparable"] = report["reason"] is None
    able = manifest if report["comparable"] else None
    frame = _written(params, inputs, able) if params.prompt.free_text else _labelled(params, inputs, able)
    write_parquet(outputs.champion_predictions, frame)
    write_json(outputs.champion_report, {**report, "rows": len(frame)})
    return report


def why_not(manifest: dict[str, Any], params: TaskParams) -> str | None:
    """Why a version of this manifest cannot answer the task as it is now: another kind of answer, other labels or fields; None when it can."""
    kinds = {True: "free text", False: "labels"}
    writes = manifest.get("kind") == "generation"
    if writes != params.prompt.free_text:
        return f"it answers {kinds[writes]}, the task now asks for {kinds[params.prompt.free_text]}"
    for what, now in (("labels", list(params.prompt.labels)), ("fields", list(params.ingest.columns.fields))):
        found = manifest.get(what)
        if not isinstance(found, list) or sorted(map(str, found)) != sorted(now):  # pyright: ignore[reportUnknownArgumentType]
            return f"its {what} are {found}, the task now has {now}"
    return None


def _labelled(params: TaskParams, inputs: Paths, manifest: dict[str, Any] | None) -> "pd.DataFrame":
    """Labels and their probabilities in the order of the task's labels; no rows without a manifest."""
    from pipeline.engine.predicting import load_predictor
    from pipeline.examples import unlabelled_examples

    fields, labels = list(params.ingest.columns.fields), list(params.prompt.labels)
    test = read_parquet(inputs.test, ["row_id", "label", *fields])
    probabilities = np.empty((0, len(labels)))
    if manifest is not None:
        predictor = load_predictor(inputs.champion / BUNDLE_FOLDER, base=_base(params, manifest))
        examples = unlabelled_examples(test, predictor.template)
        with Progress("score_champion", len(test), "row") as progress:
            scores = predictor.ranker.rank(examples, batch_size=params.score.batch_size, advance=progress.advance)
        probabilities = scores.exp().numpy()[:, [predictor.labels.index(label) for label in labels]]
    answered = test.head(len(probabilities))
    return scored_frame(answered, variant=CHAMPION_VARIANT, fields=fields, labels=labels, probabilities=probabilities)


def _written(params: TaskParams, inputs: Paths, manifest: dict[str, Any] | None) -> "pd.DataFrame":
    """Answers in free text, written as the champion's own bundle says; no rows without a manifest."""
    from pipeline.engine.predicting import load_text_predictor
    from pipeline.engine.writing import Answer, target_tokens
    from pipeline.examples import rows_of
    from pipeline.text_scoring import written_frame

    test = read_parquet(inputs.test, ["row_id", "target", *params.ingest.columns.fields])
    answers: list[Answer] = []
    tokens: list[int] = []
    if manifest is not None:
        predictor = load_text_predictor(inputs.champion / BUNDLE_FOLDER, base=_base(params, manifest))
        prompts = predictor.template.encode(rows_of(test, predictor.template))
        with Progress("score_champion", len(test), "row") as progress:
            answers = predictor.writer.write(prompts, batch_size=params.score.batch_size, advance=progress.advance)
        tokens = [len(ids) for ids in target_tokens(predictor.writer.base, test["target"].tolist(), predictor.writer.settings)]
    return written_frame(CHAMPION_VARIANT, test.head(len(answers)), params, answers, None, tokens)


def _base(params: TaskParams, manifest: dict[str, Any]) -> "BaseModel | None":
    """The task's own base model is loaded as the task asks for it (dtype, attention), so that both were scored alike; another as recorded."""
    from pipeline.examples import task_base_model

    same = manifest["base_model"].get("source") == params.base_model.source.model_dump()
    return task_base_model(params) if same else None
