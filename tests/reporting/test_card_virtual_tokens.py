"""Virtual tokens on the card: nearest words made visible, a diagnostic and no explanation."""

import json
from typing import Any

import pytest

from pipeline.errors import StageInputError
from pipeline.reporting.virtual_tokens import visible_word
from tests.reporting.card_run import Run
from tests.reporting.pages import Element, read_page


def training(run: Run) -> Element:
    return read_page(run.render()).one("section", id="training")


def test_every_virtual_token_has_its_nearest_words_distances_and_drift(run: Run):
    section = training(run)
    (table,) = [one for one in section.all("table") if "vocabulary words" in one.one("caption").words]
    rows = [[cell for cell in row.children if isinstance(cell, Element)] for row in table.all("tr")[1:]]
    tokens: list[dict[str, Any]] = json.loads(run.path("virtual_tokens").read_text(encoding="utf-8"))["tokens"]
    assert len(rows) == len(tokens) == 20
    for number, (cells, token) in enumerate(zip(rows, tokens, strict=True), 1):
        first = token["nearest"][0]
        assert [cell.words for cell in cells if cell.tag == "th"] == [str(number)]
        assert len(cells[1].all("code")) == 5
        assert cells[2].words == f"{first['cosine_distance']:.3f}"
        assert cells[3].words == f"{first['l2_distance']:.3g}"
        assert [cell.words for cell in cells[4:]] == ["0.250", "3.5", "2.5from 1.25"]
    assert [code.text for code in rows[0][1].all("code")] == ["␣negative", "positive", "␣⏎", "U+202E", "token 4"]
    assert "of 49,152 vocabulary words" in table.one("caption").words


def test_the_card_says_that_it_explains_nothing(run: Run):
    statement = training(run).one("p", class_="aside").words
    assert "A diagnostic, not an explanation" in statement
    assert "do not say what the soft prompt does" in statement


def test_a_method_without_virtual_tokens_says_why(run: Run):
    nothing = {"applicable": False, "reason": "the method <b>trains</b> keys", "tokens": [], "vocabulary": None, "method": None}
    run.edit("virtual_tokens", lambda found: found.update(nothing))
    section = training(run)
    assert "Nearest words: not applicable, the method <b>trains</b> keys." in section.words
    assert not section.all("p", class_="aside")


@pytest.mark.parametrize("change", [{"tokens": []}, {"vocabulary": None}, {"applicable": False}])
def test_half_a_record_is_refused(run: Run, change: dict[str, Any]):
    run.edit("virtual_tokens", lambda found: found.update(change))
    with pytest.raises(StageInputError, match=r"virtual_tokens\.json"):
        run.render()


def test_words_that_cannot_be_seen_become_visible():
    shown = ["".join(piece.text for piece in visible_word(text, 7)) for text in (" a", "a", "a\n", "\t", "", "\u200b", "\ufffd")]
    assert shown == ["␣a", "a", "a⏎", "⇥", "token 7", "U+200B", "token 7"]
