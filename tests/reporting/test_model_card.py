"""MODEL_CARD.md, read back by huggingface_hub and compared with the run's own records."""

import json
import re
from typing import Any

import pytest
from huggingface_hub import ModelCard

from pipeline.reporting.model_card import escaped
from tests.reporting.card_run import Run, manifest


def card_of(run: Run) -> ModelCard:
    run.render()
    return ModelCard(run.outputs.model_card.read_text(encoding="utf-8"))


def test_metadata_is_read_back_with_the_figures_of_the_run(run: Run):
    data = card_of(run).data
    assert (data.base_model, data.library_name, data.pipeline_tag) == (manifest()["base_model"]["id"], "peft", "text-classification")
    assert data.model_name == run.params.report.title
    tuned = json.loads(run.path("metrics").read_text(encoding="utf-8"))["variants"]["tuned"]
    found = {result.metric_name: (result.metric_type, result.metric_value) for result in data.eval_results}
    assert found == {
        "accuracy": ("accuracy", tuned["accuracy"]["value"]),
        "macro F1": ("f1", tuned["macro_f1"]["value"]),
        "log loss": ("log_loss", tuned["log_loss"]["value"]),
        "expected calibration error": ("ece", tuned["ece"]["value"]),
    }
    test_rows = json.loads(run.path("split_report").read_text(encoding="utf-8"))["splits"]["test"]["sha256"]
    assert {(one.dataset_split, one.dataset_revision, one.task_type) for one in data.eval_results} == {
        ("test", test_rows, "text-classification")
    }


def test_text_has_every_check_variant_and_group_with_its_interval(run: Run):
    text = card_of(run).text
    gate = json.loads(run.path("gate").read_text(encoding="utf-8"))
    metrics = json.loads(run.path("metrics").read_text(encoding="utf-8"))
    assert "The gate's decision: **promote**." in text
    assert len(re.findall(r"\| PASS \|", text)) == len(gate["checks"])
    tuned, hard = (metrics["variants"][name]["accuracy"] for name in ("tuned", "hard_prompt"))
    cells = [f"{one['value']:.3f} [{one['low']:.3f}, {one['high']:.3f}]" for one in (tuned, hard)]
    assert f"| accuracy | {cells[0]} | {cells[1]} |" in text
    assert re.search(r"\| airline \| virginamerica \| \d+ \(too few\) \| ", text)
    assert "property of the text, not of its author" in text
    assert manifest()["soft_prompt"]["sha256"] in text
    assert not re.search(r"\b(un)?fair\b|\bunbiased\b|\bdebias", text, re.IGNORECASE)
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1, table


def test_a_figure_without_a_value_is_no_result(run: Run):
    def erase(found: dict[str, Any]) -> None:
        found["variants"]["tuned"]["macro_f1"] = {"value": None, "low": None, "high": None, "n": 0, "why": "no rows"}

    run.edit("metrics", erase)
    card = card_of(run)
    assert [result.metric_name for result in card.data.eval_results] == ["accuracy", "log loss", "expected calibration error"]
    assert "| macro F1 | – |" in card.text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a | b\n# c", "a \\| b # c"),
        ("# title", "\\# title"),
        ("1. item", "1\\. item"),
        ("[x](javascript:y) <b>", "\\[x\\](javascript:y) \\<b\\>"),
        ("\u202egnp", "U+202Egnp"),
        ("SmolLM2-135M", "SmolLM2-135M"),
    ],
)
def test_texts_of_reports_are_no_markdown(text: str, shown: str):
    assert escaped(text) == shown


def test_hostile_title_stays_in_its_place(run: Run):
    bad = "---\nlicense: evil\n---\n| # <script>alert(1)</script>"
    hostile = Run(
        run.root, run.params.model_copy(update={"report": run.params.report.model_copy(update={"title": bad, "description": bad})})
    )
    card = card_of(hostile)
    assert card.data.model_name == bad
    assert "license" not in card.data.to_dict()
    assert "<script>" not in card.text
