"""A task with free-text targets through all stages, on a tiny base model."""

import json
import math
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
import yaml

from pipeline.__main__ import run_stage
from pipeline.combinations import load_runnable_task
from pipeline.engine.predicting import load_predictor, load_text_predictor
from pipeline.errors import BundleError, ParamsError
from pipeline.evaluation.row_scores import row_scores
from pipeline.layout import STAGES, Layout
from pipeline.manifest import verify_bundle
from pipeline.params import load_task
from pipeline.records import read_json, read_jsonl, read_parquet
from pipeline.registry import promotion
from pipeline.registry.pyfunc import TextPromptModel
from pipeline.registry.tracking import comparison_figures, metric_figures
from pipeline.stages.score_champion import why_not
from tests.stages.conftest import TASK
from tests.stages.test_champion import AFTER_REFERENCE, change, register, run

ANSWERS = ("gate four", "gate six", "desk one")


def make_free_text(root: Path) -> None:
    """The workspace's task with a column of short answers instead of labels."""
    rows = pd.read_csv(root / "rows.csv")
    rows["answer"] = [ANSWERS[index % 7 % 3] for index in range(len(rows))]
    rows.to_csv(root / "rows.csv", index=False)
    document = yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))
    task = document["tasks"][TASK]
    task["ingest"]["columns"] = {"fields": {"text": "body"}, "target": "answer"}
    task["prompt"] |= {"verbalizers": {}, "generation": {"maximum_new_tokens": 10, "baseline": "commonest_target"}}
    task["tune"] |= {"metric": "token_accuracy", "maximum_steps": 20, "evaluate_every": 10, "learning_rate": 0.05}
    task["assess_fairness"] = {}
    task["gate"] = {
        "minimum_test_rows": 100,
        "value_thresholds": [{"metric": "token_f1", "minimum": 0.2}, {"metric": "chrf", "minimum": 0.1}],
        "change_thresholds": [{"metric": "token_f1", "baseline": "hard_prompt", "minimum_gain": 0.1}],
        "guards": [
            {"metric": "bleu", "baseline": "commonest_target", "maximum_loss": 0.1},
            {"metric": "chrf", "baseline": "champion", "maximum_loss": 0.9},
        ],
        "cost": {"maximum_added_tokens": 100.0},
        "degeneracy": {"maximum_prediction_share": 0.9, "maximum_invalid_share": 0.5},
    }
    write_params(root, document)


def write_params(root: Path, document: dict[str, object]) -> None:
    (root / "params.yaml").write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")


def test_every_stage_serves_answers_in_text(workspace: Path) -> None:
    make_free_text(workspace)
    layout = Layout(workspace, TASK)
    for stage in STAGES:
        run_stage(workspace, stage.name, TASK)
    predictions, test = read_parquet(layout.path("predictions")), read_parquet(layout.path("test"))
    assert predictions.groupby("variant")["row_id"].apply(list).to_dict() == {
        variant: test["row_id"].to_list() for variant in ("tuned", "hard_prompt", "commonest_target")
    }
    check_scores(layout, predictions)
    check_record(layout, predictions)
    check_bundle(layout, predictions, test)
    page = layout.path("card").read_text(encoding="utf-8")
    assert "token F1" in page
    assert page.count("<blockquote") == 20
    assert "nrefs:1|case:mixed" in page
    assert "confusion" not in page
    gate = read_json(layout.path("gate"))
    assert [check["name"] for check in gate["checks"]] == [
        "test_rows", "token_f1", "chrf", "token_f1 minus hard_prompt", "bleu not below commonest_target", "degeneracy", "invalid_output_rate",
        "added tokens per row", "token_f1 minus champion", "chrf not below champion",
        "leakage",
    ]  # fmt: skip
    assert {check["verdict"] for check in gate["checks"]} <= {"PASS", "FAIL", "INCONCLUSIVE", "DEGENERATE"}
    assert read_json(layout.path("fairness"))["attributes"] == {}


def test_a_later_version_is_compared_with_the_champion_by_its_own_answers(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    make_free_text(workspace)
    layout = Layout(workspace, TASK)
    first = run(workspace, [stage.name for stage in STAGES])
    assert (first["champion"], first["reason"], first["asked"]["metric"]) == (None, "no champion yet", "token_f1")
    before = read_parquet(layout.path("predictions")).query("variant == 'tuned'").reset_index(drop=True)
    assert register(workspace, 1) == 1
    promotion.connect(root=workspace).client.set_registered_model_alias(TASK, "champion", "1")

    change(workspace, "tune", maximum_steps=40, evaluate_every=20, learning_rate=0.3)
    change(workspace, "prompt", generation={"maximum_new_tokens": 4})  # the champion still writes as its own bundle says
    found = run(workspace, AFTER_REFERENCE)
    champion = read_parquet(layout.path("champion_predictions"))
    assert champion["prediction"].tolist() == before["prediction"].tolist()
    tuned = read_parquet(layout.path("predictions")).query("variant == 'tuned'").reset_index(drop=True)
    scores = [row_scores(rows["prediction"].tolist(), rows["target"].tolist())["token_f1"] for rows in (tuned, champion)]
    assert (found["comparable"], found["n"], found["champion"]["version"]) == (True, len(tuned), 1)
    assert found["difference"]["value"] == pytest.approx(scores[0].mean() - scores[1].mean())
    assert found["better"]["candidate"] == (scores[0] > scores[1]).sum()
    # So small a model writes no word of the references, but its two prompts do not write the same.
    assert tuned["prediction"].tolist() != champion["prediction"].tolist()
    assert found["guarded"]["chrf"]["value"] != 0
    gate = {check["name"]: check for check in read_json(layout.path("gate"))["checks"]}
    assert gate["token_f1 minus champion"]["value"] == pytest.approx(found["difference"]["value"])
    assert gate["token_f1 minus champion"]["verdict"] in ("PASS", "FAIL", "INCONCLUSIVE")
    assert gate["chrf not below champion"]["value"] == pytest.approx(found["guarded"]["chrf"]["value"])
    page = layout.path("card").read_text(encoding="utf-8")
    assert "Answered better by" in page
    figures = comparison_figures(found)
    assert figures["tuned_minus_champion/token_f1"] == found["difference"]["value"]
    assert figures["champion/better_candidate"] == found["better"]["candidate"]


def test_a_champion_of_labels_is_not_compared_with_free_text(workspace: Path) -> None:
    params = load_task(workspace / "params.yaml", TASK)
    make_free_text(workspace)
    text = load_task(workspace / "params.yaml", TASK)
    manifest = {"labels": ["bad", "good"], "fields": ["text"]}
    assert why_not(manifest, text) == "it answers labels, the task now asks for free text"
    assert why_not({**manifest, "labels": [], "kind": "generation"}, text) is None
    assert why_not({**manifest, "labels": [], "kind": "generation"}, params) == "it answers free text, the task now asks for labels"


def check_scores(layout: Layout, predictions: pd.DataFrame) -> None:
    report, train = read_json(layout.path("score_report")), read_parquet(layout.path("train"))
    commonest = max(Counter(train["target"]).values())
    assert Counter(train["target"])[report["trivial_answer"]] == commonest
    assert set(predictions.loc[predictions["variant"] == "commonest_target", "prediction"]) == {report["trivial_answer"]}
    assert report["hard_prompt"] == max(report["hard_prompts"], key=lambda candidate: candidate["token_f1"])["template"]
    assert {candidate["rows"] for candidate in report["hard_prompts"]} == {40}
    evaluations = [record for record in read_jsonl(layout.path("train_log")) if record["event"] == "evaluation"]
    assert [record["step"] for record in evaluations] == [10, 20]
    assert all(0 <= record["token_accuracy"] <= 1 for record in evaluations)


def check_record(layout: Layout, predictions: pd.DataFrame) -> None:
    """Point values from the predictions file, without the stage's code for averages."""
    metrics = read_json(layout.path("metrics"))
    assert (metrics["kind"], metrics["metric"]) == ("generation", "token_f1")
    for name, variant in metrics["variants"].items():
        rows = predictions[predictions["variant"] == name]
        scores = row_scores(rows["prediction"].tolist(), rows["target"].tolist())
        for metric, values in scores.items():
            assert variant[metric]["value"] == pytest.approx(values.mean()), metric
        if name != "commonest_target":
            total = (rows["reference_loss"] * rows["reference_tokens"]).sum() / rows["reference_tokens"].sum()
            assert variant["perplexity"]["value"] == pytest.approx(math.exp(total))
    assert metrics["variants"]["commonest_target"]["perplexity"]["value"] is None
    gain = metrics["comparisons"]["tuned_minus_hard_prompt"]["token_f1"]
    values = {name: variant["token_f1"]["value"] for name, variant in metrics["variants"].items()}
    assert gain["value"] == pytest.approx(values["tuned"] - values["hard_prompt"])
    # So small a model writes no answer right, but the three that there are become likelier.
    perplexities = {name: metrics["variants"][name]["perplexity"]["value"] for name in ("tuned", "hard_prompt")}
    assert perplexities["tuned"] < 0.5 * perplexities["hard_prompt"]
    figures = metric_figures(metrics, read_json(layout.path("fairness")))
    assert figures["tuned/token_f1"] == values["tuned"]
    assert figures["tuned_minus_hard_prompt/token_f1"] == gain["value"]
    assert not any(name.startswith("commonest_target/perplexity") for name in figures)
    table = pd.read_csv(layout.path("plots") / "row_scores.csv")
    assert table.groupby("variant")["token_f1"].mean().to_dict() == pytest.approx(values)


def check_bundle(layout: Layout, predictions: pd.DataFrame, test: pd.DataFrame) -> None:
    """What was scored is what a loaded version answers."""
    manifest = verify_bundle(layout.path("bundle"))
    assert (manifest["kind"], manifest["labels"]) == ("generation", [])
    predictor = load_text_predictor(layout.path("bundle"))
    rows = test[["text"]].head(5)
    answers = TextPromptModel(predictor).predict(rows)
    expected = predictions[predictions["variant"] == "tuned"].set_index("row_id").loc[test["row_id"].head(5), "prediction"]
    assert answers["answer"].tolist() == expected.tolist()
    assert list(answers.columns) == ["answer"]
    assert TextPromptModel(predictor).predict([])["answer"].tolist() == []
    with pytest.raises(BundleError, match=r"answers in text \(generation.json\)"):
        load_predictor(layout.path("bundle"))


@pytest.mark.parametrize(
    ("section", "values", "key", "problem"),
    [
        ("tune", {"metric": "accuracy"}, "tune.metric", "accuracy needs labels"),
        ("tune", {"init": {"kind": "class_labels"}}, "tune.init", "class_labels needs labels"),
        ("prompt", {"verbalizers": {"a": " a", "b": " b"}}, "prompt.verbalizers", "free text"),
        ("prompt", {"generation": {"stop": [""]}}, "prompt.generation.stop", "an empty string would end every answer"),
        ("prompt", {"generation": {"metric": "bleu"}}, "prompt.generation.metric", "found 'bleu'"),
        (
            "assess_fairness",
            {"groups": {"airline": {"derived_from": "text", "patterns": {"zero": "@air0"}}}},
            "assess_fairness.groups",
            "groups are compared by labels",
        ),
        ("gate", {"value_thresholds": [{"metric": "accuracy", "minimum": 0.1}]}, "gate.value_thresholds.0.metric", "choose one of ['exact_match'"),
        (
            "gate",
            {"change_thresholds": [{"metric": "macro_f1", "baseline": "majority_class", "minimum_gain": 0.1}]},
            "gate.change_thresholds.0.metric",
            "choose one of ['exact_match'",
        ),
        (
            "gate",
            {"change_thresholds": [{"metric": "bleu", "baseline": "majority_class", "minimum_gain": 0.1}]},
            "gate.change_thresholds.0.baseline",
            "this task has no majority_class; use hard_prompt or commonest_target",
        ),
        (
            "gate",
            {"guards": [{"metric": "accuracy", "baseline": "champion", "maximum_loss": 0.1}]},
            "gate.guards.0.metric",
            "choose one of ['exact_match'",
        ),
        (
            "gate",
            {"value_thresholds": [{"metric": "chrf", "minimum": 0.1}]},
            "gate.value_thresholds",
            "has no minimum on token_f1, the main metric (prompt.generation.metric): add {metric: token_f1, minimum: ...}",
        ),
        ("tune", {"method": {"kind": "lora"}}, "ingest.columns.target", "PEFT's forward pass is used for ranking labels only"),
    ],
)  # fmt: skip
def test_what_free_text_has_no_use_for_is_an_error_of_params(
    workspace: Path, section: str, values: dict[str, object], key: str, problem: str
) -> None:
    make_free_text(workspace)
    document = yaml.safe_load((workspace / "params.yaml").read_text(encoding="utf-8"))
    document["tasks"][TASK][section] |= values
    write_params(workspace, document)
    with pytest.raises(ParamsError) as error:
        load_runnable_task(workspace / "params.yaml", TASK)
    assert f"tasks.{TASK}.{key}" in str(error.value)
    assert problem in str(error.value)


def test_a_task_with_labels_takes_nothing_of_free_text(workspace: Path) -> None:
    document = yaml.safe_load((workspace / "params.yaml").read_text(encoding="utf-8"))
    document["tasks"][TASK]["prompt"]["generation"] = {}
    document["tasks"][TASK]["tune"]["metric"] = "exact_match"
    write_params(workspace, document)
    with pytest.raises(ParamsError) as error:
        load_task(workspace / "params.yaml", TASK)
    assert "prompt.generation: belongs to free text" in str(error.value)
    assert "tune.metric: exact_match is a metric of free text" in str(error.value)


def test_the_first_words_of_the_text_are_a_baseline_of_the_targets_usual_length(workspace: Path) -> None:
    from pipeline.text_scoring import _trivial_answers

    make_free_text(workspace)
    document = yaml.safe_load((workspace / "params.yaml").read_text(encoding="utf-8"))
    document["tasks"][TASK]["prompt"]["generation"]["baseline"] = "first_words"
    document["tasks"][TASK]["gate"]["guards"] = []  # against the other baseline
    write_params(workspace, document)
    params = load_task(workspace / "params.yaml", TASK)
    for stage in ("ingest", "validate", "split"):
        run_stage(workspace, stage, TASK)
    layout = Layout(workspace, TASK)
    test = read_parquet(layout.path("test"))
    answers, said = _trivial_answers(params, layout.path("train"), test)
    assert said is None
    assert [answer.text for answer in answers] == [" ".join(text.split()[:2]) for text in test["text"]]


def test_a_bundle_with_a_broken_generation_file_is_refused(workspace: Path) -> None:
    make_free_text(workspace)
    for stage in ("ingest", "validate", "split", "tune"):
        run_stage(workspace, stage, TASK)
    path = Layout(workspace, TASK).path("bundle") / "generation.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    assert settings == {"maximum_new_tokens": 10, "separator": " ", "stop": ["\n"], "num_beams": 1, "length_penalty": 1.0}
    for broken in ({"stop": [""]}, {"num_beams": 0}, {"maximum_new_tokens": "ten"}):
        path.write_text(json.dumps(settings | broken), encoding="utf-8")
        with pytest.raises(BundleError, match=r"generation\.json"):
            load_text_predictor(path.parent)
