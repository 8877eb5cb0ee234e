"""Stage score_champion: what the champion answers to the candidate's test rows, on the base model it was tuned on."""

from typing import Any

import numpy as np

from pipeline.evaluation.predictions import CHAMPION_VARIANT, scored_frame
from pipeline.layout import Paths
from pipeline.manifest import verify_bundle
from pipeline.params import TaskParams
from pipeline.progress import Progress
from pipeline.records import read_json, read_parquet, write_json, write_parquet
from pipeline.registry.reference import BUNDLE_FOLDER, CHAMPION_FILE


def run(*, params: TaskParams, inputs: Paths, outputs: Paths) -> dict[str, Any]:
    """Write `champion_predictions`, without rows where there is no champion or it cannot answer, and `champion_report` with the reason.

    Raises BundleError when the champion's files are altered or its base model is another now, BaseModelError when that is not installed.
    """
    champion = read_json(inputs.champion / CHAMPION_FILE)
    fields, labels = list(params.ingest.columns.fields), params.prompt.labels
    test = read_parquet(inputs.test, ["row_id", *(["label"] if labels else []), *fields])
    report: dict[str, Any] = {"task": outputs.champion_report.parent.name, **champion, "base_model_id": None, "comparable": False}
    probabilities = np.empty((0, len(labels)))
    if champion["version"] is not None:
        manifest = verify_bundle(inputs.champion / BUNDLE_FOLDER)
        report["base_model_id"] = manifest.get("base_model", {}).get("id")
        report["reason"] = why_not(manifest, params)
        if report["reason"] is None:
            probabilities = _answers(params, inputs, manifest, test)
            report["comparable"] = True
    rows = test.assign(label="") if not labels else test
    answered = rows.head(len(probabilities))
    frame = scored_frame(answered, variant=CHAMPION_VARIANT, fields=fields, labels=labels, probabilities=probabilities)
    write_parquet(outputs.champion_predictions, frame)
    write_json(outputs.champion_report, {**report, "rows": len(frame)})
    return report


def why_not(manifest: dict[str, Any], params: TaskParams) -> str | None:
    """Why a version of this manifest cannot answer the task as it is now: other labels or fields, or free text; None when it can."""
    if not params.prompt.labels:
        return "free text has no labels to be right or wrong about row by row"
    for what, now in (("labels", list(params.prompt.labels)), ("fields", list(params.ingest.columns.fields))):
        found = manifest.get(what)
        if not isinstance(found, list) or sorted(map(str, found)) != sorted(now):  # pyright: ignore[reportUnknownArgumentType]
            return f"its {what} are {found}, the task now has {now}"
    return None


def _answers(params: TaskParams, inputs: Paths, manifest: dict[str, Any], test: Any) -> Any:
    """Label probabilities [N, C] in the order of the task's labels."""
    from pipeline.engine.predicting import load_predictor
    from pipeline.examples import task_base_model, unlabelled_examples

    # The task's own base model is loaded as the task asks for it (dtype, attention), so that both were scored alike.
    same = manifest["base_model"].get("source") == params.base_model.source.model_dump()
    predictor = load_predictor(inputs.champion / BUNDLE_FOLDER, base=task_base_model(params) if same else None)
    examples = unlabelled_examples(test, predictor.template)
    with Progress("score_champion", len(test), "row") as progress:
        scores = predictor.ranker.rank(examples, batch_size=params.score.batch_size, advance=progress.advance)
    order = [predictor.labels.index(label) for label in params.prompt.labels]
    return scores.exp().numpy()[:, order]
