import csv
import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from pipeline.errors import StageInputError
from pipeline.layout import Layout, stage_named
from pipeline.params import load_task
from pipeline.records import write_parquet
from pipeline.stages import evaluate
from tests.evaluation.scored_rows import LABELS

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path: Path) -> Callable[[pd.DataFrame], dict[str, object]]:
    layout, stage = Layout(tmp_path, "tweet_sentiment"), stage_named("evaluate")
    params = load_task(ROOT / "params.yaml", "tweet_sentiment")

    def run_stage(frame: pd.DataFrame) -> dict[str, object]:
        write_parquet(layout.path("predictions"), frame)
        return evaluate.run(params=params, inputs=layout.inputs(stage), outputs=layout.outputs(stage))

    return run_stage


def test_outputs_are_the_documented_files_and_nothing_else(frame: pd.DataFrame, tmp_path: Path, run: Callable[..., object]) -> None:
    report = run(frame)
    written = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert written == [
        "data/predictions/tweet_sentiment.parquet",
        "data/predictions/tweet_sentiment.parquet.sha256",
        "reports/tweet_sentiment/metrics.json",
        "reports/tweet_sentiment/plots/classification_report.csv",
        "reports/tweet_sentiment/plots/confusion_matrix.csv",
        "reports/tweet_sentiment/plots/metrics_by_variant.csv",
        "reports/tweet_sentiment/plots/reliability.csv",
    ]
    stored = json.loads((tmp_path / "reports/tweet_sentiment/metrics.json").read_text())
    assert stored == report
    assert list(stored) == ["task", "kind", "n", "labels", "confidence_level", "replicates", "method", "variants", "comparisons"]
    assert stored["task"] == "tweet_sentiment"


def test_plot_tables_repeat_the_record(frame: pd.DataFrame, tmp_path: Path, run: Callable[..., object]) -> None:
    report = run(frame)
    folder = tmp_path / "reports/tweet_sentiment/plots"
    answers = pd.read_csv(folder / "confusion_matrix.csv")
    counts = pd.crosstab(answers["actual"], answers["predicted"]).loc[list(LABELS), list(LABELS)]
    assert counts.to_numpy().tolist() == report["variants"]["tuned"]["confusion_matrix"]
    with (folder / "metrics_by_variant.csv").open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    # accuracy, log loss, MCC, six averages, Brier score, three figures of the calibration error, three coverages; three per label
    assert len(lines) == 4 * (16 + 3 * 3)
    found = {(line["variant"], line["metric"]): line for line in lines}
    assert float(found["tuned", "macro_f1"]["low"]) == report["variants"]["tuned"]["macro_f1"]["low"]
    assert found["majority_class", "per_class.positive.precision"]["value"] == ""
    assert float(found["tuned", "selective_accuracy.0.5"]["n"]) == 150
    summary = pd.read_csv(folder / "classification_report.csv").set_index(["variant", "label"])
    assert list(summary.loc["tuned"].index) == [*LABELS, "macro avg", "weighted avg"]
    assert summary.loc[("tuned", "macro avg"), "f1"] == pytest.approx(report["variants"]["tuned"]["macro_f1"]["value"])
    assert summary.loc[("hard_prompt", "neutral"), "support"] == report["variants"]["tuned"]["per_class"]["neutral"]["support"]
    reliability = pd.read_csv(folder / "reliability.csv")
    assert reliability.groupby("variant")["n"].sum().to_dict() == dict.fromkeys(report["variants"], 300)


def test_two_runs_write_the_same_bytes(frame: pd.DataFrame, tmp_path: Path, run: Callable[..., object]) -> None:
    def contents() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in (tmp_path / "reports").rglob("*") if path.is_file()}

    run(frame)
    first = contents()
    run(frame)
    assert contents() == first


def test_a_failure_writes_nothing(frame: pd.DataFrame, tmp_path: Path, run: Callable[..., object]) -> None:
    frame["p.neutral"] = float("nan")
    with pytest.raises(StageInputError, match="finite"):
        run(frame)
    assert not (tmp_path / "reports").exists()
