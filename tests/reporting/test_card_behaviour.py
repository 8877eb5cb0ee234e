"""What the card says of behaviour: counted again from the answers, and escaped."""

import json
import re

import pandas as pd
import pytest

from pipeline.errors import StageInputError
from pipeline.records import write_parquet
from pipeline.reporting.behaviour import marked
from tests.reporting.card_run import Run
from tests.reporting.pages import Element, read_page


def section(page: Element) -> Element:
    return page.one("section", id="behaviour")


def table(page: Element, caption: str) -> list[list[str]]:
    (found,) = [one for one in section(page).all("table") if caption in one.one("caption").words]
    return [[cell.words for cell in row.children if isinstance(cell, Element)] for row in found.all("tr")]


def flips_by_hand(run: Run, probe: str) -> list[tuple[str, str, str, str]]:
    """(text, answer, changed text, changed answer) of each flip, by a loop over the answers."""
    answers = pd.read_parquet(run.path("behaviour_predictions"))
    before = {row.row_id: row for row in answers[answers["probe"] == "original"].itertuples()}
    changed = [(before[row.row_id], row) for row in answers[answers["probe"] == probe].itertuples()]
    return [(one.text, one.prediction, two.text, two.prediction) for one, two in changed if one.prediction != two.prediction]


def pairs_in(details: Element) -> list[tuple[str, str, str, str]]:
    """(text, answer, changed text, changed answer) of each text pair shown."""
    items = [(item.all("dt"), item.all("dd")) for item in details.all("li")]
    return [(texts[0].text, answers[0].words, texts[1].text, answers[1].words) for answers, texts in items]


def details_of(page: Element, title: str) -> Element:
    (found,) = [one for one in section(page).all("details") if one.one("summary").words.startswith(f"{title}: ")]
    return found


def test_a_swap_shows_changed_rows_flips_upper_end_and_verdict(run: Run):
    record = json.loads(run.path("behaviour").read_text(encoding="utf-8"))["swaps"]["travel"]
    flips = flips_by_hand(run, "swap.travel")
    rows = {row[0].split(" counterfactual")[0]: row for row in table(read_page(run.render()), "Flips: rows that get another label")[1:]}
    found, rate = rows["travelcounterfactual swap"], record["flip_rate"]
    assert found[1] == f"{record['changed']}of {record['searched']}"
    assert found[2] == str(len(flips))
    assert found[3] == f"{rate['value']:.3f}[{rate['low']:.3f}, {rate['high']:.3f}]"
    assert rate["value"] == pytest.approx(len(flips) / record["changed"])
    assert found[4] == f"{rate['high']:.3f}"
    assert found[6] == "✓ PASSflip rate, limit 0.900"
    widest = max(record["shift"], key=lambda label: max(abs(record["shift"][label]["low"]), abs(record["shift"][label]["high"])))
    assert found[5].endswith(f"{widest}, n {record['shift'][widest]['n']}")


def test_a_swap_that_changed_no_row_has_no_rate(run: Run):
    rows = table(read_page(run.render()), "Flips: rows that get another label")[1:]
    (empty,) = [row for row in rows if row[0].startswith("rare words")]
    assert "fewer than 50 rows" in empty[0]
    assert empty[1:6] == ["0of 600", "0", "not computable: no row was changed", "–", "too few rows"]


@pytest.mark.parametrize(("title", "probe"), [("travel", "swap.travel"), ("typos", "robustness.typos")])
def test_flips_stand_there_with_both_texts_and_both_answers(run: Run, title: str, probe: str):
    page = read_page(run.render())
    flips, details = flips_by_hand(run, probe), details_of(page, title)
    shown = pairs_in(details)
    assert len(flips) > 10
    assert len(shown) == run.params.report.examples == 10
    assert set(shown) <= set(flips)
    assert details.one("summary").words == f"{title}: {len(flips)} flips, 10 shown"
    ways = {f"{before} → {after}" for _, before, _, after in flips}
    assert set(re.findall(r"(\w+ → \w+): \d+", details.one("p").words)) == ways
    marks = [mark.text for mark in details.all("mark")]
    assert len(marks) >= 20
    assert {"flight", "train"} <= set(marks) or probe != "swap.travel"


def test_fewer_flips_are_shown_where_fewer_are_asked_for(run: Run):
    few = Run(run.root, run.params.model_copy(update={"report": run.params.report.model_copy(update={"examples": 2})}))
    page = read_page(few.render())
    assert [len(pairs_in(details_of(page, title))) for title in ("travel", "typos", "mine")] == [2, 2, 2]


def test_answers_of_another_run_are_refused(run: Run):
    path = run.path("behaviour_predictions")
    answers = pd.read_parquet(path)
    mine = answers["probe"] == "pairs.mine"
    answers.loc[mine, "prediction"] = "neutral"
    write_parquet(path, answers)
    with pytest.raises(StageInputError, match=r"answers\.parquet holds 0 flips of pairs mine, the behaviour record counts [1-6]\."):
        run.render()


def test_robustness_tests_batch_and_bias_have_their_figures(run: Run):
    record = json.loads(run.path("behaviour").read_text(encoding="utf-8"))
    page = read_page(run.render())
    rows = {row[0]: row for row in table(page, "under each change")[1:]}
    assert list(rows) == ["as it is", "typos", "case", "worst case", "drop to the worst case"]
    assert rows["typos"][1] == str(record["robustness"]["perturbations"]["typos"]["changed"])
    assert rows["worst case"][2].startswith(f"{record['robustness']['worst_case_accuracy']['value']:.3f}[")
    assert rows["drop to the worst case"][4] == "✓ PASSlimit 0.950"
    tests = table(page, "As in CheckList")[1:]
    assert [row[1] for row in tests] == [str(record["tests"][name]["cases"]) for name in record["tests"]]
    assert "minimum functionality" in tests[0][0]
    bias = table(page, "with the tuned prompt minus without")[1:]
    for column, key in ((2, "base"), (3, "tuned")):
        assert bias[0][column].startswith(f"{record['bias']['stereotypes'][key]['value']:.3f}[")
    assert bias[0][4].endswith(f"p {record['bias']['stereotypes']['p_value']:.2g}")
    assert bias[1][1] == "not measured: an encoder gives texts no likelihood"
    assert "Over 8 rows the largest difference of a probability is 0, and no row gets another label." in section(page).words


def test_failing_cases_of_tests_are_listed(run: Run):
    record = json.loads(run.path("behaviour").read_text(encoding="utf-8"))["tests"]
    words = section(read_page(run.render())).words
    for name, test in record.items():
        assert (f"Failing cases of {name} ({len(test['examples'])} shown)" in words) == bool(test["examples"])


def test_one_answer_to_everything_is_said_to_flip_never(run: Run):
    run.edit("behaviour", lambda found: found["swaps"]["travel"].update(predicted={"negative": 120, "neutral": 0, "positive": 0}))
    (row,) = [row for row in table(read_page(run.render()), "Flips: rows that get another label")[1:] if row[0].startswith("travel")]
    assert "every unchanged text is given negative, and an answer that looks at nothing never flips" in row[0]


def test_no_probe_is_said_to_tell_nothing(run: Run):
    nothing = {"swaps": {}, "pairs": {}, "robustness": None, "tests": {}, "batch_invariance": None, "bias": {}}
    run.edit("behaviour", lambda found: found.update(nothing))
    words = section(read_page(run.render())).words
    assert "the section behaviour of params.yaml names no probe" in words
    assert "nothing is known of how answers change with the text" in words


def test_changed_texts_are_hostile_input(run: Run):
    bad = "<script>alert(1)</script> \u202efdp \"><b onclick=x>'"
    path = run.path("behaviour_predictions")
    answers = pd.read_parquet(path)
    write_parquet(path, answers.assign(text=bad + answers["text"]))
    html = run.render()
    page = read_page(html)
    assert not page.all("script")
    assert not any("onclick" in element.attributes for element in page.all(""))
    assert "\u202e" not in html
    shown = details_of(page, "travel").all("dd")[0]
    assert "<script>alert(1)</script> U+202Efdp" in shown.text


@pytest.mark.parametrize(
    ("before", "after", "changed"),
    [
        ("his bag is late", "her bag is late", (["his"], ["her"])),
        ("one two", "one two three", ([], [" three"])),
        ("same", "same", ([], [])),
        ("", "new", ([], ["new"])),
        ("a  b", "a b", (["  "], [" "])),
    ],
)
def test_words_that_differ_are_marked_and_nothing_is_lost(before: str, after: str, changed: tuple[list[str], list[str]]):
    for side, text, expected in zip(marked(before, after), (before, after), changed, strict=True):
        words = [("".join(piece.text for piece in stretch.pieces), stretch.changed) for stretch in side]
        assert "".join(word for word, _ in words) == text
        assert [word for word, differs in words if differs] == expected
