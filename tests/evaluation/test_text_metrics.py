"""Metrics of written answers, against the published examples of the libraries and against their own corpus scores."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from pipeline.errors import StageInputError
from pipeline.evaluation.corpus_scores import bleu, bleu_counts, chrf, chrf_counts
from pipeline.evaluation.intervals import percentile_interval
from pipeline.evaluation.row_scores import exact_match, repetition, row_scores, squad_words, token_f1
from pipeline.evaluation.text_metrics import COMPARED, evaluate_text
from pipeline.evaluation.written_rows import read_written
from pipeline.records import write_parquet

# The example of sacrebleu's README: BLEU 48.53 and chrF2 59.73 with both references.
SYSTEM = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
FIRST = ["The dog bit the man.", "It was not unexpected.", "The man bit him first."]
SECOND = ["The dog had bit the man.", "No one was surprised.", "The man had bitten the dog."]
WORDS = ["the", "a", "dog", "cat", "man", "bit", "runs", "over", "lazy", "9", "apples", "oranges"]
SETTINGS = {"metric": "token_f1", "confidence_level": 0.95, "replicates": 1000, "seed": 0}


def sentences(count: int, seed: int) -> list[str]:
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(WORDS, generator.integers(1, 8))) for _ in range(count)]


def test_bleu_and_chrf_of_the_published_example() -> None:
    for score, metric, published in ((bleu, BLEU(), 48.53), (chrf, CHRF(), 59.73)):
        counts = np.array(metric._extract_corpus_statistics(SYSTEM, [FIRST, SECOND]), dtype=float)
        assert 100 * score(counts.sum(axis=0, keepdims=True))[0] == pytest.approx(published, abs=0.005)


@pytest.mark.parametrize("seed", range(40))
def test_corpus_scores_are_sacrebleus(seed: int) -> None:
    """Short answers too, in which some lengths of n-grams have none, or none that is right."""
    rows = 1 + seed % 4
    answers, targets = sentences(rows, seed), sentences(rows, seed + 1000)
    answers[0] = "" if seed % 5 == 0 else answers[0]
    for score, counts, metric in ((bleu, bleu_counts, BLEU()), (chrf, chrf_counts, CHRF())):
        found, signature = counts(answers, targets)
        expected = metric.corpus_score(answers, [targets])
        assert 100 * score(found.sum(axis=0, keepdims=True))[0] == pytest.approx(expected.score)
        assert signature == str(metric.get_signature())


def test_rouge_of_the_published_example() -> None:
    """rouge-score's README: fmeasure 0.7058 of rouge1 and 0.5882 of rougeL, with stemming."""
    found = row_scores(["The quick brown dog jumps on the log."], ["The quick brown fox jumps over the lazy dog"])
    assert found["rouge_1"][0] == pytest.approx(2 * 6 / 17)  # 0.75 and 0.667
    assert found["rouge_l"][0] == pytest.approx(2 * 5 / 17)  # 0.625 and 0.556
    assert found["rouge_2"][0] == pytest.approx(2 * 2 / 15)  # the quick, quick brown


@pytest.mark.parametrize(
    ("answer", "target", "exact", "f1"),
    [
        ("The Eiffel Tower!", "eiffel tower", 1, 1),
        ("12 red apples.", "12 apples", 0, 2 * 2 / 5),
        ("dogs dogs cats", "dogs cats cats", 0, 2 * 2 / 6),  # a word counts as often as both have it
        ("", "apples", 0, 0),
        ("the", "a", 1, 1),  # neither has a word left
        ("6.5", "65", 1, 1),  # as SQuAD's script has it: points vanish
        ("therapist", "rapist", 0, 0),  # an article inside a word is none
    ],
)
def test_squad_figures_of_worked_examples(answer: str, target: str, exact: float, f1: float) -> None:
    assert exact_match(answer, target) == exact
    assert token_f1(answer, target) == pytest.approx(f1)
    assert token_f1(target, answer) == pytest.approx(f1)


def test_normalisation_follows_the_order_of_squads_script() -> None:
    assert squad_words("An  apple-a-day, THE end.") == ["appleaday", "end"]


def test_repetition_of_worked_examples() -> None:
    assert repetition("one two three four") == 0
    assert repetition("ha ha ha ha ha") == pytest.approx(2 / 3)
    assert repetition("two words") == 0


def frame_of(answers: dict[str, list[str]], targets: list[str], losses: dict[str, list[float]] | None = None) -> pd.DataFrame:
    frames = []
    for variant, texts in answers.items():
        frames.append(
            pd.DataFrame(
                {
                    "row_id": [f"r{index:04d}" for index in range(len(texts))],
                    "variant": variant,
                    "text": [f"question {index}" for index in range(len(texts))],
                    "target": targets,
                    "prediction": texts,
                    "tokens": [len(text.split()) for text in texts],
                    "ended": [index % 10 != 0 for index in range(len(texts))],
                    "reference_loss": pd.Series((losses or {}).get(variant, [None] * len(texts)), dtype="float64"),
                    "reference_tokens": [1 + index % 4 for index in range(len(texts))],
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


@pytest.fixture
def frame() -> pd.DataFrame:
    targets = sentences(60, 1)
    half_right = [target if index % 2 else other for index, (target, other) in enumerate(zip(targets, sentences(60, 2), strict=True))]
    losses = {"tuned": [0.5 + index % 3 for index in range(60)], "hard_prompt": [2.0] * 60}
    return frame_of({"tuned": half_right, "hard_prompt": sentences(60, 3), "commonest_target": [targets[0]] * 60}, targets, losses)


def read(path: Path, frame: pd.DataFrame) -> object:
    write_parquet(path, frame)
    return read_written(path, ("tuned", "hard_prompt", "commonest_target"))


def test_figures_and_intervals_agree_with_resampling_through_the_libraries(frame: pd.DataFrame, tmp_path: Path) -> None:
    found = evaluate_text(read(tmp_path / "p.parquet", frame), **SETTINGS)
    tuned = frame[frame["variant"] == "tuned"]
    answers, targets = np.array(tuned["prediction"]), np.array(tuned["target"])
    figures = found["variants"]["tuned"]
    assert figures["bleu"]["value"] == pytest.approx(BLEU().corpus_score(list(answers), [list(targets)]).score / 100)
    assert figures["length_ratio"]["value"] == pytest.approx(
        sum(map(len, map(str.split, answers))) / sum(map(len, map(str.split, targets)))
    )
    tokens, losses = tuned["reference_tokens"].to_numpy(), tuned["reference_loss"].to_numpy()
    assert figures["perplexity"]["value"] == pytest.approx(math.exp((tokens * losses).sum() / tokens.sum()))
    assert figures["invalid_output_rate"]["value"] == pytest.approx(0.1)
    assert (figures["cut"], figures["empty"]) == (6, 0)
    generator = np.random.default_rng(7)
    draws = [generator.integers(0, 60, 60) for _ in range(300)]
    plain = {
        "bleu": [BLEU().corpus_score(list(answers[rows]), [list(targets[rows])]).score / 100 for rows in draws],
        "chrf": [CHRF().corpus_score(list(answers[rows]), [list(targets[rows])]).score / 100 for rows in draws],
        "perplexity": [math.exp((tokens * losses)[rows].sum() / tokens[rows].sum()) for rows in draws],
    }
    for name, values in plain.items():
        width = figures[name]["high"] - figures[name]["low"]
        assert (figures[name]["low"], figures[name]["high"]) == pytest.approx(percentile_interval(np.array(values), 0.95), abs=0.2 * width)


def test_differences_are_paired(frame: pd.DataFrame, tmp_path: Path) -> None:
    """Two variants that differ on one row of 60 differ by at most a few rows' worth in any replicate."""
    same = frame[frame["variant"] == "tuned"].assign(variant="hard_prompt")
    same.loc[same.index[0], "prediction"] = "zzz"
    others = frame[frame["variant"] != "hard_prompt"]
    found = evaluate_text(read(tmp_path / "p.parquet", pd.concat([others, same])), **SETTINGS)
    gain = found["comparisons"]["tuned_minus_hard_prompt"]
    assert list(gain) == list(COMPARED)
    assert 0 <= gain["rouge_1"]["low"] <= gain["rouge_1"]["value"] <= gain["rouge_1"]["high"] < 0.06
    alone = found["variants"]["tuned"]["rouge_1"]
    assert alone["high"] - alone["low"] > 0.1


def test_the_commonest_answer_and_figures_without_a_model(frame: pd.DataFrame, tmp_path: Path) -> None:
    found = evaluate_text(read(tmp_path / "p.parquet", frame), **SETTINGS)["variants"]["commonest_target"]
    assert found["commonest_answer"]["rows"] == 60
    assert found["distinct_answers"] == 1
    assert found["perplexity"]["value"] is None
    assert "without a model" in found["perplexity"]["why"]


def test_answers_that_are_right_everywhere_keep_an_interval(tmp_path: Path) -> None:
    targets = sentences(50, 4)
    frame = frame_of({"tuned": targets, "hard_prompt": ["zzz"] * 50, "commonest_target": targets}, targets)
    found = evaluate_text(read(tmp_path / "p.parquet", frame), **SETTINGS)["variants"]
    for metric in ("exact_match", "token_f1", "rouge_1"):
        assert found["tuned"][metric]["value"] == 1
        assert 0.9 < found["tuned"][metric]["low"] < 1
        assert found["hard_prompt"][metric]["value"] == 0
        assert 0 < found["hard_prompt"][metric]["high"] < 0.1


@pytest.mark.parametrize(
    ("column", "value", "complaint"),
    [
        ("variant", "zero_shot", "has the variants"),
        ("target", "another", "the column target of variant"),
        ("row_id", "r0001", "stands there more than once"),
        ("prediction", None, "without prediction"),
        ("tokens", -1, "expected numbers from 0"),
        ("reference_loss", None, "a loss for all rows or none"),
    ],
)
def test_answers_that_do_not_hold_together_are_refused(
    frame: pd.DataFrame, tmp_path: Path, column: str, value: object, complaint: str
) -> None:
    changed = frame.astype({"prediction": object, "reference_loss": object})
    changed.loc[changed.index[60], column] = value  # the first row of the hard prompt
    changed["reference_loss"] = changed["reference_loss"].astype("float64")
    with pytest.raises(StageInputError, match=complaint):
        read(tmp_path / "p.parquet", changed)
