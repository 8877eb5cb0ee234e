"""Stage report: everything the run wrote -> the prompt card (one self-contained HTML page), its plots, and the model card for Hugging Face."""

from collections.abc import Sequence
from typing import Any

from pipeline.layout import Paths
from pipeline.manifest import MANIFEST_FILE, manifest_sha256
from pipeline.params import TaskParams
from pipeline.records import read_json, read_jsonl, read_parquet, replacing_file, replacing_folder, sha256_file
from pipeline.reporting.behaviour import ANSWER_COLUMNS
from pipeline.reporting.card import CardInputs, card_pictures, render_card
from pipeline.reporting.champion import check_same_rows
from pipeline.reporting.examples import check_predictions
from pipeline.reporting.formats.behaviour import Behaviour
from pipeline.reporting.formats.comparison import ChampionComparison
from pipeline.reporting.formats.data import Data, Drift, Ingest, Split
from pipeline.reporting.formats.gate import Gate, GateInputs, check_gate, check_gate_inputs
from pipeline.reporting.formats.metrics import Fairness, Metrics, Score, check_hard_prompt, check_labels
from pipeline.reporting.formats.record import RecordT, parse
from pipeline.reporting.formats.text import TextEvaluation, TextMetrics, TextScore
from pipeline.reporting.formats.training import Evaluation, Manifest, parse_train_log
from pipeline.reporting.formats.virtual_tokens import VirtualTokens
from pipeline.reporting.model_card import render_model_card
from pipeline.reporting.pictures import save_pictures
from pipeline.reporting.text_card import TextCardInputs, check_metric_of_prompts, render_text_card, text_card_pictures, text_columns


def run(*, params: TaskParams, inputs: Paths, outputs: Paths) -> dict[str, Any]:
    """Write both cards and the plots; returns the size of the prompt card in bytes and the decision it shows. Raises StageInputError naming a file and key."""
    card = _read_text(params, inputs) if params.prompt.free_text else _read(params, inputs)
    check_gate(card.gate, inputs.gate)
    judged = {key: sha256_file(getattr(inputs, key.removesuffix("_sha256"))) for key in GateInputs.model_fields}
    check_gate_inputs(card.gate, inputs.gate, GateInputs(**judged))
    if isinstance(card, TextCardInputs):
        check_metric_of_prompts(card.score, card.metrics.metric, inputs.score_report)
    else:
        check_hard_prompt(card.score, card.metrics, inputs.metrics)
        check_labels(card.metrics, card.fairness, inputs.metrics, inputs.fairness)
    check_predictions(card.predictions, card.metrics.n, inputs.predictions)
    if isinstance(card, CardInputs) and card.comparison.comparable:
        check_same_rows(card.champion_answers, card.predictions, inputs.champion_predictions)
    # A lone surrogate, which JSON can carry and UTF-8 cannot, becomes a character reference that browsers show as U+FFFD.
    text = render_text_card(card) if isinstance(card, TextCardInputs) else render_card(card)
    page = text.encode("utf-8", errors="xmlcharrefreplace")
    pictures = text_card_pictures(card) if isinstance(card, TextCardInputs) else card_pictures(card)
    with replacing_folder(outputs.pictures) as folder:
        save_pictures(folder, pictures)
    model_card = render_model_card(card, [(f"{outputs.pictures.name}/{picture.file}", picture.alt) for picture in pictures]).encode(
        "utf-8", errors="xmlcharrefreplace"
    )
    for path, content in ((outputs.card, page), (outputs.model_card, model_card)):
        with replacing_file(path) as temporary:
            temporary.write_bytes(content)
    return {"bytes": len(page), "decision": card.gate.decision}


def _read(params: TaskParams, inputs: Paths) -> CardInputs:
    metrics = _typed(Metrics, inputs, "metrics")
    manifest = parse(Manifest, read_json(inputs.bundle / MANIFEST_FILE), inputs.bundle / MANIFEST_FILE)
    columns = ["row_id", "variant", "text", "label", "prediction", *(f"p.{label}" for label in metrics.labels)]
    return CardInputs(
        **_common(params, inputs, manifest, columns),
        train_log=parse_train_log(read_jsonl(inputs.train_log), inputs.train_log, manifest.training.trial, Evaluation),
        score=_typed(Score, inputs, "score_report"),
        metrics=metrics,
        fairness=_typed(Fairness, inputs, "fairness"),
        metric=params.compare.metric,
        champion_answers=read_parquet(inputs.champion_predictions, ["row_id", "label", "prediction"]),
    )


def _read_text(params: TaskParams, inputs: Paths) -> TextCardInputs:
    manifest = parse(Manifest, read_json(inputs.bundle / MANIFEST_FILE), inputs.bundle / MANIFEST_FILE)
    return TextCardInputs(
        **_common(params, inputs, manifest, text_columns()),
        train_log=parse_train_log(read_jsonl(inputs.train_log), inputs.train_log, manifest.training.trial, TextEvaluation),
        score=_typed(TextScore, inputs, "score_report"),
        metrics=_typed(TextMetrics, inputs, "metrics"),
    )


def _common(params: TaskParams, inputs: Paths, manifest: Manifest, columns: Sequence[str]) -> dict[str, Any]:
    """What the cards of all tasks show."""
    return {
        "title": params.report.title,
        "description": params.report.description,
        "template": params.prompt.template,
        "examples": params.report.examples,
        "seed": params.report.seed,
        "ingest": _typed(Ingest, inputs, "ingest_report"),
        "data": _typed(Data, inputs, "data_report"),
        "split": _typed(Split, inputs, "split_report"),
        "drift": _typed(Drift, inputs, "drift"),
        "manifest": manifest,
        "manifest_sha256": manifest_sha256(inputs.bundle),
        "predictions": read_parquet(inputs.predictions, list(columns)),
        "gate": _typed(Gate, inputs, "gate"),
        "comparison": _typed(ChampionComparison, inputs, "comparison"),
        "behaviour": _typed(Behaviour, inputs, "behaviour"),
        "behaviour_answers": read_parquet(inputs.behaviour_predictions, list(ANSWER_COLUMNS)),
        "behaviour_file": inputs.behaviour_predictions,
        "virtual_tokens": _typed(VirtualTokens, inputs, "virtual_tokens"),
    }


def _typed(model: type[RecordT], inputs: Paths, name: str) -> RecordT:
    path = getattr(inputs, name)
    return parse(model, read_json(path), path)
