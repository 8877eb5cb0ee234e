"""MODEL_CARD.md: what a run made and how it did, in the format of Hugging Face model cards.

The metadata (https://github.com/huggingface/hub-docs/blob/main/modelcard.md) is written by huggingface_hub: base model, library, pipeline tag
and the tuned prompt's results as a model-index. The text below has the same figures with their intervals, for people. Nothing is sent anywhere.
"""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.reporting.card import CardInputs, worth_of_labels
from pipeline.reporting.changes import changes
from pipeline.reporting.examples import visible_pieces
from pipeline.reporting.formats.record import Estimate
from pipeline.reporting.formats.text import TEXT_METRIC_NAMES
from pipeline.reporting.lineage import lineage
from pipeline.reporting.page import environment
from pipeline.reporting.text_card import TextCardInputs, worth_of_text
from pipeline.reporting.wording import figure, interval
from pipeline.variants import NAMES

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

LABEL_METRICS: Mapping[str, str] = {
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "log_loss": "log loss",
    "ece": "expected calibration error",
}
# The names of the metrics on the Hub, where they differ from ours.
_HUB_METRICS: Mapping[str, str] = {"macro_f1": "f1", "token_f1": "f1", "rouge_1": "rouge", "rouge_2": "rouge", "rouge_l": "rouge"}
_SPECIAL = re.compile(r"([\\`*_\[\]<>|~&$]|^[#+=-]|(?<=^\d)[.)])")


def render_model_card(inputs: CardInputs | TextCardInputs, pictures: Sequence[tuple[str, str]] = ()) -> str:
    """The metadata between two lines of three dashes, then the text, with line feeds only; `pictures` are (relative path, text alternative)."""
    template = environment(markup=False).get_template("model_card.md.jinja")
    return f"---\n{metadata(inputs)}\n---\n{template.render(_context(inputs) | {'pictures': pictures})}"


def metadata(inputs: CardInputs | TextCardInputs) -> str:
    """The YAML block of the card; results without a value are left out, since the format has no place for them."""
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        base_model=inputs.manifest.base_model.id,
        library_name="peft",
        pipeline_tag=_task_type(inputs),
        tags=["soft-prompt", inputs.manifest.training.method.replace("_", "-")],
        model_name=inputs.title,
        eval_results=_results(inputs) or None,
    )
    return data.to_yaml(line_break="\n")


def escaped(text: str) -> str:
    """A text from a report as one line that Markdown shows as it is; invisible characters as code points."""
    shown = "".join(piece.text for piece in visible_pieces(text))
    return _SPECIAL.sub(r"\\\1", " ".join(shown.split()))


def _results(inputs: CardInputs | TextCardInputs) -> "list[EvalResult]":
    from huggingface_hub import EvalResult

    test_rows = inputs.split.splits.get("test")
    return [
        EvalResult(
            task_type=_task_type(inputs),
            dataset_type=inputs.metrics.task,
            dataset_name=inputs.title,
            dataset_split="test",
            dataset_revision=test_rows.sha256 if test_rows else None,
            metric_type=_HUB_METRICS.get(key, key),
            metric_name=name,
            metric_value=estimate.value,
        )
        for key, name, estimate in _figures(inputs, "tuned")
        if estimate.value is not None
    ]


def _figures(inputs: CardInputs | TextCardInputs, variant: str) -> list[tuple[str, str, Estimate]]:
    """(key, name, estimate) of each metric of one variant; none when it was not scored."""
    if isinstance(inputs, TextCardInputs):
        names, record = TEXT_METRIC_NAMES, inputs.metrics.variants.get(variant)
    else:
        names, record = LABEL_METRICS, getattr(inputs.metrics.variants, variant, None)
    return [] if record is None else [(key, name, getattr(record, key)) for key, name in names.items()]


def _context(inputs: CardInputs | TextCardInputs) -> dict[str, Any]:
    scored = {name: _figures(inputs, variant) for variant, name in NAMES.items()}
    variants = {name: figures for name, figures in scored.items() if figures}
    rows = [
        [name, *(_cell(figures[index][2]) for figures in variants.values())]
        for index, (_, name, _) in enumerate(next(iter(variants.values())))
    ]
    return {
        "card": inputs,
        "metrics": inputs.metrics,
        "gate": inputs.gate,
        "level": f"{inputs.metrics.confidence_level:.0%}",
        "variants": list(variants),
        "rows": rows,
        "worth": worth_of_text(inputs) if isinstance(inputs, TextCardInputs) else worth_of_labels(inputs),
        "groups": {} if isinstance(inputs, TextCardInputs) else inputs.fairness.attributes,
        "free_text": isinstance(inputs, TextCardInputs),
        "changes": changes(inputs.gate.checks),
        "lineage": lineage(inputs.ingest, inputs.split, inputs.manifest, inputs.manifest_sha256),
        "cell": _cell,
        "escaped": escaped,
        "figure": figure,
        "fence": _fence(inputs.template),
    }


def _task_type(inputs: CardInputs | TextCardInputs) -> str:
    return "text-generation" if isinstance(inputs, TextCardInputs) else "text-classification"


def _cell(estimate: Estimate) -> str:
    """A figure with its interval; "–" where there is none."""
    return f"{figure(estimate.value)} {interval(estimate)}".strip()


def _fence(text: str) -> str:
    """Enough backticks to stand around a text that may hold some."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    return "`" * max(3, longest + 1)
