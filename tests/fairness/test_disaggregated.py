import json
from itertools import combinations
from pathlib import Path

import fairlearn.metrics as fl
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score, precision_score

from pipeline.errors import StageInputError
from pipeline.evaluation.intervals import f1_interval, newcombe, wilson
from pipeline.evaluation.predictions import Predictions, Scored
from pipeline.fairness.disaggregated import assess
from pipeline.fairness.groups import groups_per_row, make_attributes, text_groups
from pipeline.layout import Layout, stage_named
from pipeline.params import AssessFairnessParams, ColumnGroups, TaskParams, TextGroups, load_task
from pipeline.records import write_parquet
from pipeline.stages import assess_fairness
from tests.evaluation.scored_rows import LABELS, long_frame, noisy
from tests.registry.registry_workspace import write_comparison

ROOT = Path(__file__).parents[2]
PATTERNS = {"united": r"(?i)@united\b", "jetblue": r"(?i)@jetblue\b", "delta": r"(?i)@delta\b"}


def params_for(patterns: dict[str, str] = PATTERNS, minimum: int = 20) -> AssessFairnessParams:
    groups = {"airline": TextGroups(derived_from="text", patterns=patterns)}
    return AssessFairnessParams(groups=groups, columns={}, intersections=[], minimum_denominator=minimum, confidence_level=0.95)


def predictions_for(actual: np.ndarray, predicted: np.ndarray, texts: list[str], labels: tuple[str, ...] = LABELS) -> Predictions:
    scored = Scored(predicted.astype(np.int64), np.full((len(actual), len(labels)), 1 / len(labels)))
    return Predictions(labels, [str(i) for i in range(len(actual))], texts, actual.astype(np.int64), {"tuned": scored})


@pytest.fixture
def sample() -> Predictions:
    """600 rows: 200 @united, 100 @jetblue, 30 of them both, 15 @delta, the rest nobody."""
    actual = np.random.default_rng(3).choice(3, size=600, p=[0.4, 0.4, 0.2])
    texts = ["hello @United" if i < 200 else "hi" for i in range(600)]
    texts = [f"{text} @jetblue!" if 170 <= i < 270 else text for i, text in enumerate(texts)]
    texts = [f"{text} @delta" if i >= 585 else text for i, text in enumerate(texts)]
    return predictions_for(actual, noisy(actual, 0.6, 4), texts)


def attribute(predictions: Predictions, params: AssessFairnessParams) -> dict[str, object]:
    record = assess(predictions, make_attributes(params, predictions.texts, {}), params)
    json.dumps(record, allow_nan=False)
    return record["attributes"]["airline"]


def test_groups_are_found_in_the_text() -> None:
    membership = text_groups(["@United late", "@unitedfan", "@united and @JetBlue", "nobody"], PATTERNS)
    assert membership["united"].tolist() == [True, False, True, False]
    assert membership["jetblue"].tolist() == [False, False, True, False]
    assert membership["delta"].tolist() == [False] * 4
    assert groups_per_row(membership, 4).tolist() == [1, 0, 2, 0]


def test_every_figure_of_a_group_agrees_with_numpy_masks(sample: Predictions) -> None:
    found = attribute(sample, params_for())
    actual, predicted = sample.actual, sample.tuned.predicted
    masks = {
        name: np.array([pattern.lstrip("(?i)").rstrip(r"\b") in text.lower() for text in sample.texts])
        for name, pattern in PATTERNS.items()
    }
    for name, mask in masks.items():
        group = found["groups"][name]
        assert group["n"] == mask.sum()
        assert group["share"] == pytest.approx(mask.mean())
        assert group["accuracy"]["value"] == pytest.approx((actual == predicted)[mask].mean())
        assert (group["accuracy"]["low"], group["accuracy"]["high"]) == wilson(
            int((actual == predicted)[mask].sum()), int(mask.sum()), 0.95
        )
        for index, label in enumerate(LABELS):
            has = mask & (actual == index)
            assert group["label_counts"][label] == has.sum()
            assert group["selection_rate"][label]["value"] == pytest.approx((predicted[mask] == index).mean())
            assert group["selection_rate"][label]["n"] == mask.sum()
            assert group["recall"][label]["value"] == pytest.approx((predicted[has] == index).mean())
            assert group["recall"][label]["n"] == has.sum()
            given, lacks = mask & (predicted == index), mask & (actual != index)
            hits, union = (has & given).sum(), (has | given).sum()
            assert group["precision"][label]["value"] == pytest.approx(hits / given.sum())
            assert group["precision"][label]["n"] == group["predicted"][label] == given.sum()
            assert group["false_positive_rate"][label]["value"] == pytest.approx((predicted[lacks] == index).mean())
            assert group["false_positive_rate"][label]["n"] == lacks.sum()
            assert group["f1"][label]["value"] == pytest.approx(2 * hits / (has.sum() + given.sum()))
            assert group["f1"][label]["n"] == union
            assert (group["f1"][label]["low"], group["f1"][label]["high"]) == f1_interval(int(hits), int(union), 0.95)
        sure, low, high = group["mean_confidence"], group["accuracy"]["low"], group["accuracy"]["high"]
        assert sure == pytest.approx(sample.tuned.probabilities[mask].max(axis=1).mean())
        assert group["calibration_gap"]["value"] == pytest.approx(sure - group["accuracy"]["value"])
        assert (group["calibration_gap"]["low"], group["calibration_gap"]["high"]) == (sure - high, sure - low)
    assert [group["sufficient"] for group in found["groups"].values()] == [True, True, False]
    outside = ~np.any(list(masks.values()), axis=0)
    assert found["unknown"]["n"] == outside.sum()
    assert found["unknown"]["accuracy"]["value"] == pytest.approx((actual == predicted)[outside].mean())
    assert found["in_several_groups"] == 30


def test_differences_agree_with_fairlearn_over_the_sufficient_groups() -> None:
    actual = np.random.default_rng(5).choice(3, size=900)
    names = np.array(["united", "jetblue", "delta"])[np.arange(900) % 3]
    sample = predictions_for(actual, noisy(actual, 0.5, 6), [f"@{name}" for name in names])
    found = attribute(sample, params_for())["differences"]
    predicted = sample.tuned.predicted
    assert found["accuracy"]["value"] == pytest.approx(fl.accuracy_score_difference(actual, predicted, sensitive_features=names))
    for index, label in enumerate(LABELS):
        binary = {"y_true": (actual == index).astype(int), "y_pred": (predicted == index).astype(int), "sensitive_features": names}
        assert found["demographic_parity_difference"][label]["value"] == pytest.approx(fl.demographic_parity_difference(**binary))
        assert found["equal_opportunity_difference"][label]["value"] == pytest.approx(fl.equal_opportunity_difference(**binary))
        assert found["demographic_parity_ratio"][label]["value"] == pytest.approx(fl.demographic_parity_ratio(**binary))
        assert found["equalized_odds_difference"][label]["value"] == pytest.approx(fl.equalized_odds_difference(**binary))
        for name, metric in (("false_positive_rate", fl.false_positive_rate), ("precision", precision_score), ("f1", f1_score)):
            frame = fl.MetricFrame(metrics=metric, **binary)
            assert found[f"{name}_difference"][label]["value"] == pytest.approx(frame.difference())
    accuracy = {name: (actual == predicted)[names == name].mean() for name in set(names)}
    widest = max(combinations(accuracy, 2), key=lambda pair: abs(accuracy[pair[0]] - accuracy[pair[1]]))
    assert set(found["accuracy"]["between"]) == set(widest)
    assert found["accuracy"]["low"] <= found["accuracy"]["value"] <= found["accuracy"]["high"]


def test_calibration_of_a_group_is_that_of_its_rows_alone() -> None:
    """Both groups are given 0.8 for every answer; 80 % of the one's answers are right and 55 % of the other's."""
    generator, actual = np.random.default_rng(2), np.zeros(800, dtype=np.int64)
    right = np.where(np.arange(800) < 400, generator.random(800) < 0.8, generator.random(800) < 0.55)
    answers, probabilities = np.where(right, 0, 1), np.full((800, 2), 0.2)
    probabilities[np.arange(800), answers] = 0.8
    texts = ["@united"] * 400 + ["@jetblue"] * 400
    sample = Predictions(("no", "yes"), [str(i) for i in range(800)], texts, actual, {"tuned": Scored(answers, probabilities)})
    groups = attribute(sample, params_for())["groups"]
    for name, rows in (("united", slice(0, 400)), ("jetblue", slice(400, 800))):
        found = groups[name]["calibration"]
        assert found["ece"]["value"] == pytest.approx(abs(0.8 - right[rows].mean()))
        assert found["brier"]["value"] == pytest.approx(np.where(right[rows], 2 * 0.2**2, 2 * 0.8**2).mean())
        assert found["ece_null"]["n"] == 400
    assert groups["united"]["calibration"]["ece_excess"]["value"] < 0.03
    assert groups["jetblue"]["calibration"]["ece_excess"]["low"] > 0.1
    assert groups["delta"]["calibration"]["ece"]["value"] is None


def test_all_intervals_of_a_record_hold_together(sample: Predictions) -> None:
    """Accuracy, calibration gaps and seven parities of three labels, equalized odds twice; united and jetblue are the only pair."""
    params = params_for(minimum=16)
    record = assess(sample, make_attributes(params, sample.texts, {}), params)
    assert record["comparisons"] == 2 + 3 * 8
    groups, difference = record["attributes"]["airline"]["groups"], record["attributes"]["airline"]["differences"]["accuracy"]
    counts = [(round(groups[name]["accuracy"]["value"] * groups[name]["n"]), groups[name]["n"]) for name in difference["between"]]
    low, high = newcombe(counts[0], counts[1], 1 - 0.05 / 26)
    assert (difference["low"], difference["high"]) == (max(0.0, low), max(high, -low))


def test_columns_intersections_and_the_unknown_group() -> None:
    values = [*["north"] * 40, *["south"] * 30, *[None] * 20, *["unknown"] * 5, *["west"] * 5]
    texts = ["@united"] * 50 + ["@jetblue"] * 50
    actual = np.arange(100) % 3
    params = params_for().model_copy(
        update={"columns": {"region": ColumnGroups(expected=["south", "north", "east"])}, "intersections": [["airline", "region"]]}
    )
    sample = predictions_for(actual, actual, texts)
    found = assess(sample, make_attributes(params, texts, {"region": values}), params)["attributes"]
    region, crossed = found["region"], found["airline & region"]
    assert {name: group["n"] for name, group in region["groups"].items()} == {"south": 30, "north": 40, "east": 0, "west": 5}
    assert (region["expected"], region["unknown"]["n"], region["derived_from"]) == (["south", "north", "east"], 25, "column")
    sizes = {name: group["n"] for name, group in crossed["groups"].items()}
    assert len(sizes) == 12
    assert {name: n for name, n in sizes.items() if n} == {
        "united & north": 40,
        "united & south": 10,
        "jetblue & south": 20,
        "jetblue & west": 5,
    }
    assert crossed["unknown"]["n"] == 25
    assert crossed["differences"]["accuracy"]["compared"] == ["united & north", "jetblue & south"]


def test_groups_with_too_few_rows_take_no_part_in_differences(sample: Predictions) -> None:
    found = attribute(sample, params_for())["differences"]["accuracy"]
    assert found["compared"] == ["united", "jetblue"]
    assert found["left_out"] == ["delta"]
    assert found["n"] == 300


def test_a_group_without_rows_appears_with_n_0_and_null_figures(sample: Predictions) -> None:
    group = attribute(sample, params_for({**PATTERNS, "nobody": "@nobody"}))["groups"]["nobody"]
    assert group["n"] == 0
    assert group["share"] == 0.0
    assert group["sufficient"] is False
    figures = [group["accuracy"], group["macro_f1"], *group["selection_rate"].values(), *group["recall"].values()]
    assert len(figures) == 8
    for figure in figures:
        assert figure["value"] is figure["low"] is figure["high"] is None
        assert figure["why"]


def test_no_group_at_all_has_rows() -> None:
    actual = np.arange(30) % 3
    found = attribute(predictions_for(actual, actual, ["hi"] * 30), params_for())
    assert [group["n"] for group in found["groups"].values()] == [0, 0, 0]
    assert found["unknown"]["accuracy"]["value"] == 1.0
    assert found["differences"]["accuracy"]["value"] is None


def test_every_row_is_in_a_group() -> None:
    actual = np.arange(60) % 3
    found = attribute(predictions_for(actual, actual, ["@united"] * 30 + ["@jetblue"] * 30), params_for())
    assert found["unknown"]["n"] == 0
    assert found["unknown"]["accuracy"]["value"] is None


def test_a_group_without_rows_of_a_label_has_no_recall_where_fairlearn_says_0() -> None:
    actual = np.array([2] * 50 + [0] * 50)
    names = np.array(["united"] * 50 + ["jetblue"] * 50)
    trap = fl.MetricFrame(metrics=fl.true_positive_rate, y_true=(actual == 2) * 1, y_pred=(actual == 2) * 1, sensitive_features=names)
    assert trap.by_group["jetblue"] == 0.0  # a perfect prompt
    found = attribute(predictions_for(actual, actual, [f"@{name}" for name in names]), params_for())
    recall = found["groups"]["jetblue"]["recall"]["positive"]
    assert recall["value"] is None
    assert "no row of this group has label 'positive'" in recall["why"]
    difference = found["differences"]["equal_opportunity_difference"]["positive"]
    assert difference["value"] is None
    assert difference["left_out"] == ["jetblue", "delta"]


def test_label_names_do_not_lead_to_a_difference_of_0() -> None:
    """fairlearn compares string labels with 1 and reports no difference; ours are told apart."""
    names = np.array(["united"] * 50 + ["jetblue"] * 50)
    actual, predicted = np.array([0, 1] * 50), np.array([0] * 50 + [1] * 50)
    strings = np.array(["no", "yes"])
    assert fl.demographic_parity_difference(strings[actual], strings[predicted], sensitive_features=names) == 0.0
    found = attribute(predictions_for(actual, predicted, [f"@{name}" for name in names], ("no", "yes")), params_for())
    assert found["differences"]["demographic_parity_difference"]["yes"]["value"] == 1.0


def test_a_single_group_has_no_difference_where_fairlearn_says_0() -> None:
    actual = np.arange(60) % 3
    answers = noisy(actual, 0.5, 1)
    assert fl.accuracy_score_difference(actual, answers, sensitive_features=["united"] * 60) == 0.0
    found = attribute(predictions_for(actual, answers, ["@united"] * 60), params_for())["differences"]["accuracy"]
    assert found["value"] is found["between"] is None
    assert found["why"] == "1 group(s) have at least 20 rows; a difference needs two"


def test_a_group_of_one_row() -> None:
    actual = np.arange(31) % 3
    found = attribute(predictions_for(actual, actual, ["@delta"] + ["hi"] * 30), params_for())["groups"]["delta"]
    assert found["accuracy"]["value"] == 1.0
    assert found["accuracy"]["low"] < 0.25
    assert found["macro_f1"]["value"] is None


def test_the_stage_reads_predictions_and_writes_the_record(tmp_path: Path) -> None:
    layout, stage = Layout(tmp_path, "tweet_sentiment"), stage_named("assess_fairness")
    actual = np.random.default_rng(1).choice(3, size=400)
    texts = [f"@{name} late" for name in np.array(["United", "jetblue", "JetBlue", "VirginAmerica"])[np.arange(400) % 4]]
    answers = {
        "tuned": noisy(actual, 0.6, 1),
        "hard_prompt": noisy(actual, 0.2, 3),
        "zero_shot": noisy(actual, 0.2, 2),
        "majority_class": np.zeros(400, dtype=int),
    }
    write_parquet(layout.path("predictions"), long_frame(actual, answers, texts=texts))
    write_comparison(layout)
    params = load_task(ROOT / "params.yaml", "tweet_sentiment")

    def run() -> dict[str, object]:
        return assess_fairness.run(params=params, inputs=layout.inputs(stage), outputs=layout.outputs(stage))

    report = run()
    written = layout.path("fairness").read_bytes()
    assert json.loads(written) == report
    assert list(report) == ["task", "n", "confidence_level", "minimum_denominator", "comparisons", "method", "attributes", "relative"]
    sizes = {name: group["n"] for name, group in report["attributes"]["airline"]["groups"].items()}
    assert sizes == {"united": 100, "usairways": 0, "americanair": 0, "southwestair": 0, "jetblue": 200, "virginamerica": 100}
    run()
    assert layout.path("fairness").read_bytes() == written


@pytest.fixture
def by_region(tmp_path: Path) -> tuple[Layout, TaskParams, pd.DataFrame]:
    """A task with a group column, its predictions, and the test split that has the column."""
    layout = Layout(tmp_path, "tweet_sentiment")
    actual = np.random.default_rng(1).choice(3, size=200)
    answers = {name: noisy(actual, 0.6, 1) for name in ("tuned", "hard_prompt", "zero_shot", "majority_class")}
    frame = long_frame(actual, answers)
    write_parquet(layout.path("predictions"), frame)
    write_comparison(layout)
    test = frame[frame["variant"] == "tuned"][["row_id"]].assign(**{"group.region": [["north", "south", None][i % 3] for i in range(200)]})
    params = load_task(ROOT / "params.yaml", "tweet_sentiment")
    section = params.assess_fairness.model_copy(update={"groups": {}, "columns": {"region": ColumnGroups(expected=["north", "south"])}})
    return layout, params.model_copy(update={"assess_fairness": section}), test.sample(frac=1, random_state=0)


def run_by_region(layout: Layout, params: TaskParams, test: pd.DataFrame) -> dict[str, object]:
    stage = stage_named("assess_fairness")
    write_parquet(layout.path("test"), test)
    return assess_fairness.run(params=params, inputs=layout.inputs(stage), outputs=layout.outputs(stage))


def test_the_stage_joins_group_columns_by_row_id(by_region: tuple[Layout, TaskParams, pd.DataFrame]) -> None:
    layout, params, test = by_region
    region = run_by_region(layout, params, test)["attributes"]["region"]
    predictions = pd.read_parquet(layout.path("predictions"))
    joined = predictions[predictions["variant"] == "tuned"].merge(test, on="row_id")
    right = (joined["label"] == joined["prediction"]).groupby(joined["group.region"]).mean()
    assert {name: group["accuracy"]["value"] for name, group in region["groups"].items()} == pytest.approx(dict(right))
    assert region["unknown"]["n"] == 66


def test_rows_of_another_test_split_and_identifiers_as_groups_are_refused(by_region: tuple[Layout, TaskParams, pd.DataFrame]) -> None:
    layout, params, test = by_region
    with pytest.raises(StageInputError, match="199 rows that are not the 200"):
        run_by_region(layout, params, test.iloc[1:])
    with pytest.raises(StageInputError, match=r"group\.region has 202 values, at most 50"):
        run_by_region(layout, params, test.assign(**{"group.region": test["row_id"]}))


def test_without_attributes_the_record_is_empty_but_there(sample: Predictions) -> None:
    params = AssessFairnessParams(groups={}, columns={}, intersections=[], minimum_denominator=20, confidence_level=0.95)
    record = assess(sample, {}, params)
    assert (record["attributes"], record["comparisons"]) == ({}, 0)
