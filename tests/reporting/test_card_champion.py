"""The card beside the champion: counted again from both files of predictions."""

import json

import pandas as pd
import pytest

from pipeline.errors import StageInputError
from pipeline.records import write_parquet
from tests.reporting.card_run import LABELS, Run, build_run
from tests.reporting.pages import Element, read_page


def table(page: Element, caption: str) -> list[list[str]]:
    (found,) = [one for one in page.all("table") if caption in one.one("caption").words]
    return [[cell.words for cell in row.children if isinstance(cell, Element)] for row in found.all("tr")]


def both(run: Run) -> pd.DataFrame:
    tuned = pd.read_parquet(run.path("predictions")).query("variant == 'tuned'")
    return tuned.merge(pd.read_parquet(run.path("champion_predictions"))[["row_id", "prediction"]], on="row_id", suffixes=("", "_champion"))


def test_confusion_matrices_stand_side_by_side_on_the_same_rows(run: Run):
    page, rows = read_page(run.render()), both(run)
    for caption, column in (("This tuned prompt", "prediction"), ("Champion, version 3", "prediction_champion")):
        counts = pd.crosstab(rows["label"], rows[column]).reindex(index=LABELS, columns=LABELS, fill_value=0)
        for cells, label in zip(table(page, caption)[1:], LABELS, strict=True):
            shares = counts.loc[label] / counts.loc[label].sum()
            assert cells == [label, *(f"{counts.loc[label, other]:,}{shares[other]:.0%}" for other in LABELS)]
    (pair,) = [box for box in page.all("div", class_="pair") if len(box.all("div", class_="matrix")) == 2]
    assert [box.one("caption").words for box in pair.all("div", class_="matrix")] == ["This tuned prompt", "Champion, version 3"]


def test_comparison_shows_mode_difference_p_attempt_and_level(run: Run):
    page, rows = read_page(run.render()), both(run)
    section = page.one("section", id="champion")
    record = json.loads(run.path("comparison").read_text(encoding="utf-8"))
    assert "is its accuracy above that of the champion, version 3, beyond chance, on the same 600 test rows?" in section.words
    ours, theirs = rows["label"] == rows["prediction"], rows["label"] == rows["prediction_champion"]
    found = {row[0]: row[1:] for row in table(page, "Accuracy on the same 600 test rows")[1:]}
    assert found["This tuned prompt"][1] == f"{ours.sum()} rows right"
    assert found["Champion, version 3"][0].startswith(f"{theirs.mean():.3f}[")
    difference = record["difference"]
    assert found["This minus champion"][0] == f"+{difference['value']:.3f}[+{difference['low']:.3f}, +{difference['high']:.3f}]"
    assert found["This minus champion"][1].startswith(
        f"{(ours & ~theirs).sum()} rows that only this one has right, {(~ours & theirs).sum()} that only the champion has right"
    )
    assert found["p, one-sided"][0] == f"{record['p_value']:.3g}"
    assert found["Attempt"][0] == "2", "one other bundle, and this one"
    assert f"the level of this attempt is {record['level']:.3g}" in found["Attempt"][1]
    assert "98.33%" in section.words


def test_discordant_rows_are_shown_both_ways(run: Run):
    page, rows = read_page(run.render()), both(run)
    section = page.one("section", id="champion")
    ours, theirs = rows["label"] == rows["prediction"], rows["label"] == rows["prediction_champion"]
    for heading, mask, listed in zip(
        ("Only this tuned prompt is right", "Only the champion is right"), (ours & ~theirs, ~ours & theirs), section.all("ul"), strict=True
    ):
        assert f"{heading}: {mask.sum()} rows, 10 shown" in section.words
        items = listed.all("li")
        assert len(items) == 10
        texts = {(row.text, row.label, row.prediction, row.prediction_champion) for row in rows[mask].itertuples()}
        for item in items:
            words = [bold.words for bold in item.all("b")]
            assert (item.one("blockquote").text, *words) in texts


def test_non_inferior_says_its_margin(run: Run):
    params = run.params.model_copy(update={"compare": run.params.compare.model_copy(update={"mode": "non_inferior", "margin": 0.03})})
    other = Run(run.root, params)
    other.judge()
    assert (
        "is its accuracy at most 0.030 below that of the champion, version 3, on the same 600 test rows?" in read_page(other.render()).words
    )


def test_without_a_champion_one_sentence_says_so(tmp_path):
    run = build_run(tmp_path, rows=400, replicates=100, skill=0.75)
    page = read_page(run.render())
    assert "There is no champion to compare with (no champion yet), so this is a first version." in page.one("section", id="champion").words
    assert not [one for one in page.all("table") if "Champion" in one.one("caption").words]
    assert not page.one("section", id="champion").all("table")
    (row,) = [row for row in table(page, "Every check") if row[0] == "accuracy minus champion"]
    assert row[1:5] == ["✓ PASS", "nothing to compare", "–", "–"]
    assert "there is nothing to compare with, and the other checks decide" in row[5]


def test_a_champion_that_cannot_answer_is_named_with_the_reason(run: Run):
    run.edit("champion_report", lambda found: found.update(comparable=False, reason="its labels are ['a', 'b']"))
    run.judge()
    page = read_page(run.render())
    assert "cannot be compared with the champion, version 3: its labels are ['a', 'b']." in page.one("section", id="champion").words
    assert not [one for one in page.all("table") if "Champion" in one.one("caption").words]


def test_a_champion_of_other_rows_is_refused(run: Run):
    path = run.path("champion_predictions")
    write_parquet(path, pd.read_parquet(path).iloc[1:])
    with pytest.raises(StageInputError, match=r"champion\.parquet has 599 rows, of which 599 are among the 600 .* expected the same rows"):
        run.render()


@pytest.mark.parametrize("key", ["n", "difference", "metrics", "paired", "examples", "level"])
def test_a_comparison_without_a_figure_is_refused_and_named(run: Run, key: str):
    run.edit("comparison", lambda found: found.update({key: None}))
    with pytest.raises(StageInputError, match=f"comparison.json.*there is no {key}"):
        run.render()


def test_the_gate_must_have_judged_this_comparison_and_this_behaviour(run: Run):
    for name in ("comparison", "behaviour"):
        run.edit("gate", lambda found, name=name: found["inputs"].update({f"{name}_sha256": "0" * 64}))
        with pytest.raises(StageInputError, match=f"'inputs.{name}_sha256' is 0000"):
            run.render()
        run.judge()
