import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pipeline.errors import StageInputError
from pipeline.layout import stage_named
from pipeline.reporting.lineage import data_docs_link, flatten
from pipeline.reporting.wording import figure, signed
from pipeline.stages import report
from tests.reporting.card_run import LABELS, ROOT, TASK, Run, build_run, manifest
from tests.reporting.pages import Element, read_page


def record(run: Run, name: str) -> dict[str, Any]:
    return json.loads(run.path(name).read_text(encoding="utf-8"))


def table_with(page: Element, caption: str) -> list[list[str]]:
    """The cells of the table whose caption holds these words."""
    found = [table for table in page.all("table") if caption in table.one("caption").words]
    assert len(found) == 1, caption
    return [[cell.words for cell in row.children if isinstance(cell, Element)] for row in found[0].all("tr")]


# --- what a sound run shows -------------------------------------------------------------------------------------------


def test_promoted_run_says_so_and_lists_every_check(run: Run):
    page = read_page(run.render())
    gate = record(run, "gate")
    assert gate["decision"] == "promote"
    assert page.one("h2", id="verdict").words == "PROMOTE"
    assert "The gate would promote this tuned prompt." in page.one("div", class_="verdict").words
    assert page.one("title").words.startswith("PROMOTE: ")
    rows = table_with(page, "Every check")[1:]
    assert len(rows) == len(gate["checks"]) == 16
    for cells, check in zip(rows, gate["checks"], strict=True):
        assert cells[0] == check["name"]
        assert cells[1] == f"✓ {check['verdict']}"
        assert cells[3] == f"{check['n']:,}"
        assert check["sentence"] in cells[5]
        assert check["rule"] in cells[5]
        if check["low"] is not None:
            assert cells[2] == f"{check['value']:.3f}[{check['low']:.3f}, {check['high']:.3f}]".replace("-", "−")


def test_refused_run_gives_every_reason_at_the_top(tmp_path: Path):
    run = build_run(tmp_path, rows=400, replicates=200, skill=0.1, floor=0.99)
    page = read_page(run.render())
    gate = record(run, "gate")
    verdict = page.one("div", class_="verdict")
    assert verdict.holds("class", "refuse")
    assert page.one("h2", id="verdict").words == "REFUSED"
    assert "The gate refuses this tuned prompt." in verdict.words
    failing = [check for check in gate["checks"] if check["verdict"] != "PASS"]
    reasons = [item.words for item in verdict.all("li")]
    assert len(reasons) == len(gate["reasons"]) == len(failing) > 3
    for reason, check in zip(reasons, failing, strict=True):
        assert check["name"] in reason
        assert check["verdict"] in reason
        assert check["sentence"] in reason
    assert "PROMOTE" not in page.words


def test_a_reason_that_belongs_to_no_check_is_shown_whole(run: Run):
    run.edit("gate", lambda found: found.update(decision="refuse", reasons=["There are no checks & nothing is promoted."], checks=[]))
    page = read_page(run.render())
    assert [item.words for item in page.one("div", class_="verdict").all("li")] == ["There are no checks & nothing is promoted."]
    assert "lists no checks, so nothing could pass" in page.words


def test_variants_and_differences_stand_side_by_side(run: Run):
    rows = table_with(read_page(run.render()), "Metrics of each variant")
    metrics = record(run, "metrics")
    assert rows[0] == ["Variant", "Accuracy", "Macro F1", "Log loss"]
    for cells, name in zip(rows[1:5], ("tuned", "hard_prompt", "zero_shot", "majority_class"), strict=True):
        for cell, metric in zip(cells[1:], ("accuracy", "macro_f1", "log_loss"), strict=True):
            found = metrics["variants"][name][metric]
            assert cell == f"{found['value']:.3f}[{found['low']:.3f}, {found['high']:.3f}]"
    gain = metrics["comparisons"]["tuned_minus_hard_prompt"]["accuracy"]
    assert rows[5][:2] == ["Tuned − hard prompt", f"+{gain['value']:.3f}[+{gain['low']:.3f}, +{gain['high']:.3f}]"]
    assert [row[0] for row in rows[6:]] == ["Tuned − zero-shot prompt", "Tuned − majority class"]


def test_confusion_matrix_is_that_of_the_predictions(run: Run):
    tuned = pd.read_parquet(run.path("predictions")).query("variant == 'tuned'")
    counts = pd.crosstab(tuned["label"], tuned["prediction"]).reindex(index=LABELS, columns=LABELS, fill_value=0)
    rows = table_with(read_page(run.render()), "This tuned prompt")[1:]
    for cells, label in zip(rows, LABELS, strict=True):
        expected = [f"{counts.loc[label, other]:,}{counts.loc[label, other] / counts.loc[label].sum():.0%}" for other in LABELS]
        assert cells == [label, *expected]


def test_groups_show_interval_limit_and_verdict(run: Run):
    page = read_page(run.render())
    groups = record(run, "fairness")["attributes"]["airline"]["groups"]
    bars = {
        bar.one("span", class_="what").words.split("n ")[0].strip(): bar
        for bar in page.one("ul", class_="judged").all("li")
        if bar.all("small")
    }
    assert set(bars) == set(groups)
    for name, group in groups.items():
        bar, accuracy = bars[name], group["accuracy"]
        assert f"[{accuracy['low']:.3f}, {accuracy['high']:.3f}]" in bar.words
        width = re.fullmatch(r"width:([\d.]+)%", bar.one("span", class_="fill").attributes["style"])
        assert width is not None
        assert float(width[1]) == pytest.approx(accuracy["value"] * 100, abs=0.006)
        assert bool(bar.all("span", class_="limit")) == (name != "virginamerica")
    assert not groups["virginamerica"]["sufficient"]
    assert bars["virginamerica"].holds("class", "insufficient")
    assert "too few rows" in bars["virginamerica"].words
    assert "PASS" not in bars["virginamerica"].words
    assert all(bars[name].holds("class", "pass") for name in set(groups) - {"virginamerica"})


def test_groups_are_said_to_be_of_the_text_and_never_called_fair(run: Run):
    page = read_page(run.render())
    statement = page.one("section", id="groups").one("p", class_="aside").words
    assert statement.count(". ") == 1
    assert "a group is a property of the text" in statement
    assert "not of its author" in statement
    assert "do not say" in statement
    assert not re.search(r"\b(un)?fair\b|\bunbiased\b|\bdebias", page.words, re.IGNORECASE)


def test_data_prompts_and_lineage_are_there(run: Run):
    page = read_page(run.render())
    made = manifest()
    for text in (
        made["soft_prompt"]["sha256"],
        made["base_model"]["id"],
        made["base_model"]["weights_sha256"],
        made["data"]["train_sha256"],
        made["code"]["commit"],
        made["libraries"]["torch"],
        made["hardware"]["instruction_set"],
        record(run, "ingest_report")["source"],
        record(run, "ingest_report")["source_sha256"],
        "low_label_confidence",
        "1,575",
        "13,612",
        "12 of 12 evaluated, 1 failed",
    ):
        assert text in page.words, text
    assert [pre.text for pre in page.all("pre")] == [run.params.prompt.template, record(run, "score_report")["hard_prompt"]]
    assert page.one("a", href="data_docs/index.html").words == "Data Docs"


def test_training_curve_has_a_text_alternative_and_marks_the_best_step(run: Run):
    page = read_page(run.render())
    image = page.one("div", role="img")
    assert "Validation accuracy is best at step 180, with 0.660 on 400 rows." in image.attributes["aria-label"]
    assert [mark.attributes["style"] for mark in image.all("span", class_="best")] == ["left:75.0%", "left:75.0%"]
    assert len(image.all("path", class_="raw")) == len(image.all("path", class_="smooth")) == len(image.all("path", class_="selected")) == 1


# --- the page itself --------------------------------------------------------------------------------------------------


def test_page_is_self_contained_and_small(run: Run):
    html = run.render()
    page = read_page(html)
    assert len(html.encode()) < 300_000
    assert not page.all("script")
    assert not page.all("img")
    assert not re.search(r"https?://|//cdn|@import|url\(|javascript:|\son\w+=", html)
    assert [link.attributes["href"] for link in page.all("link")] == ["data:,"]
    assert "default-src 'none'" in page.one("meta", **{"http-equiv": "Content-Security-Policy"}).attributes["content"]
    assert all(anchor.attributes["href"].startswith(("#", "data_docs/")) for anchor in page.all("a"))


def test_every_table_has_a_caption_and_headers_and_every_figure_a_caption(run: Run):
    page = read_page(run.render())
    assert len(page.all("table")) >= 9
    for table in page.all("table"):
        assert table.one("caption").words
        header = table.one("thead").all("tr")
        assert all(cell.tag == "th" and "scope" in cell.attributes for row in header for cell in row.children if isinstance(cell, Element))
    assert all(element.one("figcaption").words for element in page.all("figure"))
    ids = [element.attributes["id"] for element in page.all("") if "id" in element.attributes]
    assert len(ids) == len(set(ids))
    assert {anchor.attributes["href"][1:] for anchor in page.one("nav").all("a")} <= set(ids)


def test_same_inputs_give_the_same_bytes_in_another_process(run: Run):
    run.render()
    first = run.outputs.card.read_bytes()
    (run.root / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    for seed in ("1", "2"):
        run.outputs.card.unlink()
        command = [sys.executable, "-m", "pipeline", "report", "--task", TASK]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed, "TZ": f"UTC+{seed}", "LC_ALL": "C"}
        subprocess.run(command, cwd=run.root, env=environment, check=True, capture_output=True)
        assert run.outputs.card.read_bytes() == first


def test_stage_writes_the_card_and_nothing_else(run: Run):
    before = {path for path in run.root.rglob("*") if path.is_file()}
    found = report.run(params=run.params, inputs=run.inputs, outputs=run.outputs)
    after = {path for path in run.root.rglob("*") if path.is_file()}
    pictures = {run.outputs.pictures / f"{name}.png" for name in ("forest", "reliability", "confusion", "training")}
    assert after - before == {run.outputs.card, run.outputs.model_card} | pictures
    assert found == {"bytes": run.outputs.card.stat().st_size, "decision": "promote"}


def test_reporting_imports_no_heavy_library():
    heavy = ("torch", "transformers", "peft", "mlflow", "prefect", "matplotlib", "pandas", "jinja2")
    code = f"import sys, pipeline.reporting.card, pipeline.stages.report; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


# --- examples ---------------------------------------------------------------------------------------------------------


def shown_texts(page: Element) -> list[str]:
    return [quote.text for quote in page.one("section", id="examples").all("blockquote")]


def test_ten_right_and_ten_wrong_with_their_probabilities(run: Run):
    page = read_page(run.render())
    right, wrong = page.one("section", id="examples").all("ul", class_="examples")
    tuned = pd.read_parquet(run.path("predictions")).query("variant == 'tuned'")
    assert len(right.all("blockquote")) == len(wrong.all("blockquote")) == 10
    assert all("which is right" in item.words for item in right.all("li"))
    assert all("the label is" in item.words for item in wrong.all("li"))
    hits = set(tuned[tuned["label"] == tuned["prediction"]]["text"])
    misses = set(tuned[tuned["label"] != tuned["prediction"]]["text"])
    assert {quote.text for quote in right.all("blockquote")} <= hits
    assert {quote.text for quote in wrong.all("blockquote")} <= misses
    shares = [
        [float(value.text) for value in item.all("dd") if not value.holds("class", "meter")] for item in page.all("dl", class_="shares")
    ]
    assert len(shares) == 20
    assert all(math.isclose(sum(values), 1.0, abs_tol=0.016) for values in shares)


def test_choice_depends_on_the_seed_and_not_on_the_order_of_rows(run: Run):
    first = shown_texts(read_page(run.render()))
    run.edit_predictions(lambda frame: frame.sample(frac=1, random_state=3))
    assert shown_texts(read_page(run.render())) == first
    other = Run(run.root, run.params.model_copy(update={"report": run.params.report.model_copy(update={"seed": 1})}))
    assert shown_texts(read_page(other.render())) != first


def test_fewer_examples_than_asked_and_none_at_all(run: Run):
    few = Run(run.root, run.params.model_copy(update={"report": run.params.report.model_copy(update={"examples": 3})}))
    assert len(shown_texts(read_page(few.render()))) == 6
    run.edit_predictions(lambda frame: frame.assign(prediction=frame["label"]))
    page = read_page(run.render())
    assert len(shown_texts(page)) == 10
    assert "No test row has a wrong answer." in page.words


HOSTILE = (
    "<script>alert('x')</script> \"quoted\" & 'single' </style></blockquote><img src=x onerror=alert(1)> {{ 7 * 7 }} {% raw %}",
    "\u202egnp.exe\u202c and \u200f\u061c right-to-left \u0000 nul \x1b[31m \ufeff",
    "سلام دنیا \U0001f469\u200d\U0001f4bb",
)


def test_tweets_are_hostile_input(run: Run):
    run.edit_predictions(lambda frame: frame.assign(text=[HOSTILE[index % 3] for index in range(len(frame))]))
    html = run.render()
    page = read_page(html)
    assert not page.all("script")
    assert not page.all("img")
    quotes = page.all("blockquote")
    assert {quote.text for quote in quotes} >= {HOSTILE[0], HOSTILE[2]}
    assert all(quote.attributes["dir"] == "auto" for quote in quotes)
    assert not re.search("[\u202a-\u202e\u2066-\u2069\u200e\u200f\u061c\ufeff\x00\x1b]", html)
    marked = next(quote for quote in quotes if "gnp.exe" in quote.text)
    hidden = [mark.text for mark in marked.all("span", class_="hidden")]
    assert hidden == ["U+202E", "U+202C", "U+200F", "U+061C", "U+0000", "U+001B", "U+FEFF"]


def test_every_report_is_hostile_input(run: Run):
    """Each string of each report and of the params is replaced by markup: it must come out as text, in attributes too."""
    bad = "\"><script>alert(1)</script><b onclick=x>'"

    def poison(found: Any) -> Any:
        if isinstance(found, dict):
            return {key: value if key in KEPT else poison(value) for key, value in found.items()}
        if isinstance(found, list):
            return [poison(value) for value in found]
        return bad if isinstance(found, str) else found

    for name in ("ingest_report", "data_report", "split_report", "bundle", "score_report", "gate"):
        run.edit(name, lambda record: record.update(poison(record)))
    report_params = run.params.report.model_copy(update={"title": bad, "description": bad})
    prompt = run.params.prompt.model_copy(update={"template": bad})
    html = Run(run.root, run.params.model_copy(update={"report": report_params, "prompt": prompt})).render()
    page = read_page(html)
    assert not page.all("script")
    assert not any("onclick" in element.attributes for element in page.all(""))
    assert page.words.count(bad) > 50
    assert "Data Docs: " in page.words


KEPT = ("decision", "verdict", "inputs", "metric", "reasons")


def test_text_that_utf8_cannot_hold_does_not_break_the_page(run: Run):
    run.edit("ingest_report", lambda found: found.update(source="half a pair: \ud83d"))
    assert "half a pair: &#55357;" in run.render()


# --- figures that do not exist ----------------------------------------------------------------------------------------


def nothing(why: str = "no row has label 'positive'") -> dict[str, Any]:
    return {"value": None, "low": None, "high": None, "n": 0, "why": why}


def test_null_estimates_say_why_and_never_look_like_a_pass(run: Run):
    def erase(found: dict[str, Any]) -> None:
        tuned = found["variants"]["tuned"]
        tuned["accuracy"], tuned["macro_f1"], tuned["log_loss"] = nothing("<b>no rows</b>"), nothing(), None
        tuned["per_class"]["positive"].update(precision=nothing("never predicted"), support=0)
        tuned["confusion_matrix"][2] = [0, 0, 0]
        found["comparisons"]["tuned_minus_hard_prompt"]["accuracy"] = nothing("one <variant> is missing")

    def erase_groups(found: dict[str, Any]) -> None:
        airline = found["attributes"]["airline"]
        airline["groups"]["united"]["accuracy"] = nothing("this group lost its rows")
        airline["groups"]["jetblue"]["recall"]["positive"] = nothing("no positive row")
        airline["differences"]["accuracy"] = {**nothing("one group"), "between": None}
        airline["unknown"]["accuracy"] = nothing()

    run.edit("metrics", erase)
    run.edit("fairness", erase_groups)
    page = read_page(run.render())
    for why in (
        "<b>no rows</b>",
        "never predicted",
        "one <variant> is missing",
        "this group lost its rows",
        "no positive row",
        "one group",
    ):
        assert f"not computable: {why}" in page.words
    assert "not computable: the report holds null instead of an estimate" in page.words
    assert not page.all("b", text="no rows")
    united = next(bar for bar in page.one("ul", class_="judged").all("li") if bar.words.startswith("united"))
    assert united.holds("class", "insufficient")
    assert "PASS" not in united.words
    assert not united.all("span", class_="fill")
    assert "no rows" in table_with(page, "This tuned prompt")[3][1]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_numbers_that_are_not_finite_are_refused(run: Run, number: str):
    path = run.path("score_report")
    path.write_text(path.read_text().replace('"accuracy": 0.44,', f'"accuracy": {number},'))
    with pytest.raises(StageInputError, match=re.escape(str(path))):
        run.render()


def test_a_value_without_interval_says_so(run: Run):
    run.edit("metrics", lambda found: found["variants"]["tuned"]["log_loss"].update(low=None, why="one row"))
    assert "no interval: one row" in read_page(run.render()).words


def test_check_without_value_is_not_computable_and_refused(run: Run):
    def lose(found: dict[str, Any]) -> None:
        found["checks"][1].update(verdict="MISSING", value=None, low=None, high=None, n=None)
        found.update(decision="refuse", reasons=["accuracy is missing"])

    run.edit("gate", lose)
    cells = table_with(read_page(run.render()), "Every check")[2]
    assert cells[1:4] == ["? MISSING", "not computable", "–"]


def test_no_groups_at_all_is_not_a_finding(run: Run):
    run.edit("fairness", lambda found: found.update(attributes={}))
    page = read_page(run.render())
    assert "nothing was assessed" in page.words
    assert "not a finding of equal treatment" in page.words


def test_empty_training_log(run: Run):
    run.path("train_log").write_text("")
    assert "The training log is empty" in read_page(run.render()).words


# --- inputs that do not fit -------------------------------------------------------------------------------------------

INPUT_FILES = [name for name in stage_named("report").inputs if name != "bundle"]
REQUIRED = [
    ("ingest_report", "source"),
    ("ingest_report", "source_sha256"),
    ("data_report", "quarantined_by_rule"),
    ("data_report", "expectations.0.severity"),
    ("split_report", "splits.test.rows"),
    ("bundle", "soft_prompt.sha256"),
    ("bundle", "base_model.weights_sha256"),
    ("bundle", "code.dirty"),
    ("bundle", "hardware"),
    ("score_report", "hard_prompts.0.accuracy"),
    ("metrics", "labels"),
    ("metrics", "variants.hard_prompt"),
    ("metrics", "comparisons.tuned_minus_hard_prompt"),
    ("metrics", "variants.tuned.accuracy"),
    ("metrics", "variants.tuned.accuracy.low"),
    ("metrics", "variants.tuned.per_class.neutral"),
    ("metrics", "variants.majority_class.predicted.positive"),
    ("metrics", "comparisons.tuned_minus_majority_class.macro_f1"),
    ("fairness", "minimum_denominator"),
    ("fairness", "attributes.airline.groups.united.sufficient"),
    ("fairness", "attributes.airline.groups.united.recall.positive"),
    ("fairness", "attributes.airline.differences.equal_opportunity_difference.neutral"),
    ("gate", "decision"),
    ("gate", "checks.0.verdict"),
    ("gate", "checks.3.limit"),
    ("gate", "inputs.metrics_sha256"),
]


def test_figures_of_a_hard_prompt_that_was_not_scored_are_refused(run: Run):
    run.edit("score_report", lambda found: found.update(hard_prompt=None))
    with pytest.raises(StageInputError, match=r"metrics\.json has 'variants\.hard_prompt', but no hard prompt was scored"):
        run.render()


@pytest.mark.parametrize(("name", "key"), REQUIRED)
def test_missing_key_names_the_file_and_the_key(run: Run, name: str, key: str):
    def remove(found: dict[str, Any]) -> None:
        *path, last = key.split(".")
        node: Any = found
        for part in path:
            node = node[int(part)] if isinstance(node, list) else node[part]
        del node[last]

    run.edit(name, remove)
    file = "manifest.json" if name == "bundle" else run.path(name).name
    with pytest.raises(StageInputError, match=rf"{re.escape(file)} lacks the key '{re.escape(key)}'"):
        run.render()
    assert not run.outputs.card.exists()


@pytest.mark.parametrize("name", [*INPUT_FILES, "bundle"])
def test_missing_file_is_named(run: Run, name: str):
    path = run.path("bundle") / "manifest.json" if name == "bundle" else run.path(name)
    path.unlink()
    with pytest.raises(StageInputError, match=re.escape(f"{path} does not exist")):
        run.render()


def test_wrong_type_names_the_key_and_the_value(run: Run):
    run.edit("metrics", lambda found: found["variants"]["tuned"]["accuracy"].update(value="0.9"))
    with pytest.raises(StageInputError, match=r"'variants\.tuned\.accuracy\.value' is '0\.9'"):
        run.render()


def test_unknown_decision_is_refused(run: Run):
    run.edit("gate", lambda found: found.update(decision="maybe"))
    with pytest.raises(StageInputError, match=r"'decision' is 'maybe'"):
        run.render()


def test_no_card_says_promote_above_a_check_that_did_not_pass(run: Run):
    run.edit("gate", lambda found: found["checks"][2].update(verdict="INCONCLUSIVE"))
    with pytest.raises(StageInputError, match="decision is promote, but these checks did not pass: \\['macro_f1'\\]"):
        run.render()


def test_a_person_decides_when_nothing_fails_and_the_rows_cannot_decide(run: Run):
    run.edit("gate", lambda found: found["checks"][2].update(verdict="INCONCLUSIVE"))
    run.edit("gate", lambda found: found.update(decision="ask", reasons=["macro_f1: INCONCLUSIVE: the interval holds the minimum."]))
    page = read_page(run.render())
    assert page.one("div", class_="verdict").holds("class", "ask")
    assert page.one("h2", id="verdict").words == "A PERSON DECIDES"
    assert "leaves this tuned prompt to a person" in page.one("div", class_="verdict").words


@pytest.mark.parametrize("verdict", ["FAIL", "MISSING", "DEGENERATE", "ERROR"])
def test_no_card_asks_a_person_about_a_check_that_fails(run: Run, verdict: str):
    run.edit("gate", lambda found: found["checks"][2].update(verdict="INCONCLUSIVE"))
    run.edit("gate", lambda found: found["checks"][1].update(verdict=verdict))
    run.edit("gate", lambda found: found.update(decision="ask"))
    with pytest.raises(StageInputError, match="decision is ask, but these checks did not pass: \\['accuracy'\\]"):
        run.render()


def test_no_card_says_promote_without_checks(run: Run):
    run.edit("gate", lambda found: found.update(checks=[]))
    with pytest.raises(StageInputError, match="decision is promote, but it lists no checks"):
        run.render()


def test_no_check_passes_without_a_value(run: Run):
    run.edit("gate", lambda found: found["checks"][1].update(value=None))
    with pytest.raises(StageInputError, match="check 'accuracy' has verdict PASS without a value"):
        run.render()


@pytest.mark.parametrize("name", ["metrics", "fairness"])
def test_gate_of_other_reports_is_refused(run: Run, name: str):
    run.edit(name, lambda found: found.update(method="another"), hashes=False)
    with pytest.raises(StageInputError, match=f"inputs.{name}_sha256"):
        run.render()


def test_predictions_of_another_run_are_refused(run: Run):
    run.edit_predictions(lambda frame: frame.iloc[1:])
    with pytest.raises(StageInputError, match="has 599 rows of variant 'tuned', the metrics were computed on 600"):
        run.render()


def test_predictions_without_a_label_column_name_it(run: Run):
    run.edit_predictions(lambda frame: frame.drop(columns="p.neutral"))
    with pytest.raises(StageInputError, match=r"lacks the columns \['p.neutral'\]"):
        run.render()


def test_confusion_matrix_of_another_size_is_refused(run: Run):
    run.edit("metrics", lambda found: found["variants"]["tuned"]["confusion_matrix"].pop())
    with pytest.raises(StageInputError, match=r"variants.tuned.confusion_matrix' is not 3 x 3"):
        run.render()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"event": "pause"}', "line 1: 'event' is 'pause'"),
        ('{"event": "step", "trial": 0, "step": 1}', "line 1 lacks the key 'loss'"),
        ('{"event": "step", "trial": 0, "step": 1, "loss": 1e999}', "line 1"),
        ('{"event": "step", "trial": 0, "step": 1, "loss": NaN}', "line 1"),
    ],
)
def test_bad_line_of_the_training_log_is_named(run: Run, line: str, message: str):
    run.path("train_log").write_text(line + "\n")
    with pytest.raises(StageInputError, match=re.escape(message)):
        run.render()


def test_failed_stage_leaves_the_last_card_whole(run: Run):
    run.render()
    before = run.outputs.card.read_bytes()
    run.edit("gate", lambda found: found.pop("checks"))
    with pytest.raises(StageInputError):
        run.render()
    assert run.outputs.card.read_bytes() == before
    assert [path.name for path in run.outputs.card.parent.iterdir() if path.name.startswith(".")] == []


# --- words and numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.5, "0.500"),
        (1700.0, "1,700"),
        (1.0, "1.000"),
        (-0.0123, "−0.012"),
        (-0.0001, "0.000"),
        (None, "–"),
        (float("nan"), "–"),
        (1.0324, "1.032"),
        (-3.0, "−3"),
    ],
)
def test_numbers_for_people(value: float | None, text: str):
    assert figure(value) == text


def test_signs_of_differences():
    assert [signed(value) for value in (0.1, -0.1, 0.0, 0.0001, None)] == ["+0.100", "−0.100", "0.000", "0.000", "–"]


@pytest.mark.parametrize(
    ("path", "link"),
    [
        ("data_docs/index.html", "data_docs/index.html"),
        ("reports/t/data_docs/index.html", "data_docs/index.html"),
        ("./data_docs/index.html", "data_docs/index.html"),
        ("/etc/passwd", None),
        ("../other/index.html", None),
        ("a/../../index.html", None),
        ("javascript:alert(1)", None),
        ("https://example.org/", None),
        ("//example.org/x", None),
        ("\\\\host\\share", None),
        ("", None),
    ],
)
def test_data_docs_link_is_a_plain_relative_path_or_none(path: str, link: str | None):
    assert data_docs_link(path, "t") == link


def test_flatten_leaves_nothing_out():
    assert flatten({"a": {"b": 1, "c": None}, "d": [1, "x"]}) == [("a.b", "1"), ("a.c", "not recorded"), ("d", "1, x")]
    assert flatten("text", "source") == [("source", "text")]
