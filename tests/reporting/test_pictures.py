"""The plots as PNG: the figures of the records, the same bytes everywhere, and a text alternative in each file."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from pipeline.records import read_jsonl
from pipeline.reporting.forest import ForestRow, forest
from pipeline.reporting.formats.metrics import ReliabilityBin
from pipeline.reporting.formats.record import Estimate
from pipeline.reporting.formats.training import Evaluation, parse_train_log
from pipeline.reporting.pictures import (
    Picture,
    confusion_picture,
    drawable,
    forest_picture,
    reliability_picture,
    save_pictures,
    training_picture,
)
from tests.reporting.card_run import LABELS, ROOT, TASK, Run

FILES = {"forest.png", "reliability.png", "confusion.png", "training.png"}


def drawn(picture: Picture) -> Any:
    """The axes that a picture draws, before they become pixels."""
    figure = Figure(figsize=picture.size)
    picture.draw(figure)
    return figure.axes


def lines(axes: Any) -> list[tuple[list[float], list[float]]]:
    return [(list(map(float, line.get_xdata())), list(map(float, line.get_ydata()))) for line in axes.get_lines()]


def digests(run: Run) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in run.path("pictures").iterdir()}


def test_every_plot_is_a_picture_with_its_text_alternative_and_nothing_else_in_the_file(run: Run):
    run.render()
    model_card = run.path("model_card").read_text(encoding="utf-8")
    assert set(digests(run)) == FILES
    for name in FILES:
        with Image.open(run.path("pictures") / name) as image:
            pixels = np.asarray(image.convert("L"))
            assert set(image.info) == {"Description", "dpi"}, "no software, no date"
            assert len(image.info["Description"]) > 60
            assert f"]({run.path('pictures').name}/{name})" in model_card
        assert pixels.shape[0] > 300
        assert len(np.unique(pixels)) > 20, "not empty"
    assert "6 of them with a verdict" in model_card


def test_the_same_figures_give_the_same_bytes_whatever_the_settings(run: Run, tmp_path: Path):
    run.render()
    first = digests(run)
    settings = tmp_path / "matplotlibrc"
    settings.write_text("font.size: 30\naxes.facecolor: red\nsavefig.dpi: 17\nfont.family: serif\n", encoding="utf-8")
    (run.root / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MATPLOTLIBRC": str(settings), "PYTHONHASHSEED": "5", "TZ": "UTC+9"}
    command = [sys.executable, "-m", "pipeline", "report", "--task", TASK]
    subprocess.run(command, cwd=run.root, env=environment, check=True, capture_output=True)
    assert digests(run) == first


def test_another_figure_gives_other_bytes(run: Run):
    run.render()
    first = digests(run)
    run.edit("metrics", lambda found: found["variants"]["tuned"]["confusion_matrix"][0].__setitem__(0, 1))
    run.render()
    second = digests(run)
    assert {name for name in FILES if first[name] != second[name]} == {"confusion.png"}


def test_a_picture_that_is_no_more_made_does_not_stay(run: Run):
    run.render()
    run.edit("metrics", lambda found: found["variants"]["tuned"].update(reliability=[]))
    run.render()
    assert set(digests(run)) == FILES - {"reliability.png"}


def test_forest_draws_each_interval_value_and_limit_at_its_place():
    rows = [
        ForestRow("one", Estimate(value=0.6, low=0.5, high=0.7, n=40), 0.55, "INCONCLUSIVE"),
        ForestRow("two", Estimate(value=0.9, low=0.8, high=0.95, n=50), None, ""),
        ForestRow("none", Estimate(value=None, low=None, high=None, n=0, why="no rows"), 0.55, "MISSING"),
    ]
    (axes,) = drawn(forest_picture("forest", "Shares", forest([("By x", rows)])))
    found = lines(axes)
    assert ([0.5, 0.7], [1.0, 1.0]) in found
    assert ([0.6], [1.0]) in found
    assert ([0.8, 0.95], [2.0, 2.0]) in found
    assert [x for x, _ in found if x == [0.55, 0.55]] == [[0.55, 0.55]] * 2
    assert len(found) == 6
    assert [label.get_text() for label in axes.get_yticklabels()] == ["By x", "one  n 40", "two  n 50", "none  n 0"]


def test_reliability_draws_bins_stems_and_band():
    inside = Estimate(value=0.45, low=0.3, high=0.6, n=30)
    outside = Estimate(value=0.95, low=0.9, high=0.99, n=40)
    bins = [
        ReliabilityBin.model_validate({"from": a, "to": a + 0.1, "confidence": c, "accuracy": e, "null_low": c - 0.1, "null_high": c + 0.1})
        for a, c, e in ((0.4, 0.45, inside), (0.7, 0.75, outside))
    ]
    (axes,) = drawn(reliability_picture(bins, "words"))
    found = lines(axes)
    assert ([0.45, 0.45], [0.3, 0.6]) in found
    assert ([0.75], [0.95]) in found
    markers = {tuple(line.get_xdata()): line.get_marker() for line in axes.get_lines() if len(line.get_xdata()) == 1}
    assert markers == {(0.45,): "o", (0.75,): "D"}
    corners = axes.collections[0].get_paths()[0].vertices
    assert (corners[:, 1].min(), corners[:, 1].max()) == pytest.approx((0.35, 0.85))


def test_confusion_matrices_hold_the_counts_of_both_files(run: Run):
    run.render()
    tuned = pd.read_parquet(run.path("predictions")).query("variant == 'tuned'")
    champion = pd.read_parquet(run.path("champion_predictions"))
    counts = [
        pd.crosstab(frame["label"], frame["prediction"]).reindex(index=LABELS, columns=LABELS, fill_value=0).to_numpy()
        for frame in (tuned, champion)
    ]
    panels = drawn(confusion_picture(LABELS, [("A", counts[0].tolist()), ("B", counts[1].tolist())]))
    for axes, matrix in zip(panels, counts, strict=True):
        texts = [text.get_text().split("\n")[0] for text in axes.texts]
        assert texts == [f"{count:,}" for count in matrix.ravel()]
        np.testing.assert_allclose(axes.get_images()[0].get_array(), matrix / matrix.sum(axis=1, keepdims=True))
    with Image.open(run.path("pictures") / "confusion.png") as image:
        said = image.info["Description"]
    for title, matrix in zip(("This tuned prompt", "Champion, version 3"), counts, strict=True):
        assert f"{title}: {matrix[0, 0]:,} of {matrix[0].sum():,} rows negative right" in said


def test_training_curve_is_the_log(run: Run):
    records = list(read_jsonl(run.path("train_log")))
    log = parse_train_log(records, "log", 0, Evaluation)
    loss, metrics = drawn(training_picture(log.steps, log.evaluations, ("accuracy", "macro_f1"), 180, "words"))
    steps = [record for record in records if record["event"] == "step"]
    evaluations = [record for record in records if record["event"] == "evaluation"]
    assert lines(loss)[0] == ([one["step"] for one in steps], [one["loss"] for one in steps])
    assert lines(loss)[2] == ([one["step"] for one in evaluations], [one["loss"] for one in evaluations])
    assert lines(metrics)[0][1] == [one["accuracy"] for one in evaluations]
    assert lines(metrics)[1][1] == [one["macro_f1"] for one in evaluations]
    assert ([180.0, 180.0], [0.0, 1.0]) in lines(metrics)


def test_any_label_can_be_drawn_without_a_warning(tmp_path: Path):
    """Warnings are errors here; the font has no Chinese, and a dollar sign must not become mathematics."""
    labels = ["\u4e2d\u6587", "$x$ & <b>", "\u202eevil", "x" * 80, "two\nlines"]
    save_pictures(tmp_path, [confusion_picture(labels, [("$ title", [[1] * 5] * 4 + [[0] * 5])])])
    assert (tmp_path / "confusion.png").stat().st_size > 5000
    assert [drawable(label) for label in labels] == ["U+4E2DU+6587", "$x$ & <b>", "U+202Eevil", "x" * 31 + "…", "two lines"]


def test_dvc_shows_them(run: Run, tmp_path: Path):
    """`dvc plots` takes the folder as the stage declares it."""
    from dvc.repo import Repo

    run.render()
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    folder = run.path("pictures").relative_to(run.root)
    (checkout / folder).parent.mkdir(parents=True)
    run.path("pictures").rename(checkout / folder)
    (checkout / "dvc.yaml").write_text(f"stages:\n  report:\n    cmd: 'true'\n    plots:\n      - {folder.as_posix()}\n", encoding="utf-8")
    Repo.init(str(checkout), no_scm=True).close()
    with Repo(str(checkout)) as repo:
        shown: Any = repo.plots.show()
    found = json.dumps(shown, default=lambda value: "<bytes>" if isinstance(value, bytes) else str(value))
    assert all(f"{folder.as_posix()}/{name}" in found for name in FILES)
