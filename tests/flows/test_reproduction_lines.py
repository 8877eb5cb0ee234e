"""What makes a reproduction EXACT, WITHIN TOLERANCE or neither, line by line, on records written by hand."""

from typing import Any

import pandas as pd
import pytest

from pipeline.reproduction import (
    EXACT,
    LINES,
    NOT_REPRODUCED,
    WITHIN_TOLERANCE,
    Line,
    base_model_line,
    first_difference,
    largest_loss_difference,
    overall,
    params_line,
    predictions_line,
    same_or_differs,
    tensor_line,
)

BASE = {"id": "m", "weights_sha256": "w", "tokenizer_sha256": "t", "dtype": "float32", "attention": "eager"}
ALL_OK = [Line(name, "OK", "") for name in LINES]


def log(losses: list[float], sha: str = "a") -> list[dict[str, Any]]:
    steps = [
        {"event": "step", "trial": 0, "step": n, "loss": x, "gradient_norm": 1.0, "learning_rate": 0.1, "seconds": n}
        for n, x in enumerate(losses, 1)
    ]
    return [
        *steps,
        {"event": "evaluation", "trial": 0, "step": len(losses), "accuracy": 0.5, "values_sha256": sha},
        {"event": "system", "step": 1},
    ]


def table(answers: list[str], probability: float = 0.5) -> pd.DataFrame:
    rows = [{"row_id": str(n), "variant": "tuned", "prediction": answer, "p.a": probability} for n, answer in enumerate(answers)]
    return pd.DataFrame(rows)


def test_only_every_line_ok_is_exact() -> None:
    assert overall(ALL_OK) == EXACT
    for number, name in enumerate(LINES):
        assert overall(ALL_OK[:number] + ALL_OK[number + 1 :]) == NOT_REPRODUCED, f"without {name}"
        changed = [*ALL_OK[:number], Line(name, "FAILED", ""), *ALL_OK[number + 1 :]]
        assert overall(changed) == NOT_REPRODUCED
        assert overall([*ALL_OK[:number], Line(name, "DIFFERS", ""), *ALL_OK[number + 1 :]]) == WITHIN_TOLERANCE
    assert overall([]) == NOT_REPRODUCED
    assert overall(list(reversed(ALL_OK))) == NOT_REPRODUCED


def test_the_first_differing_step_is_named_however_close_the_losses_are() -> None:
    assert first_difference(log([2.0, 1.5]), log([2.0, 1.5])) is None
    assert first_difference(log([2.0, 1.5]), log([2.0, 1.5000000000000002])) == "trial 0, step 2: loss 1.5000000000000002, recorded 1.5"
    assert first_difference(log([2.0, 1.5]), log([2.0, 1.5], "b")) == "trial 0, step 2: values_sha256 b, recorded a"
    assert first_difference(log([2.0, float("nan")]), log([2.0, float("nan")])) is None
    assert "never came there" in str(first_difference(log([2.0, 1.5, 1.0]), log([2.0, 1.5])))
    assert "no such step" in str(first_difference(log([2.0])[:1], log([2.0, 1.5])))
    assert largest_loss_difference(log([2.0, 1.5]), log([2.25, 1.0])) == 0.5


def test_weights_and_tokenizer_fail_while_kernel_and_dtype_differ() -> None:
    assert base_model_line(BASE, BASE).verdict == "OK"
    for key in ("weights_sha256", "tokenizer_sha256"):
        line = base_model_line(BASE, {**BASE, key: "other"})
        assert line.verdict == "FAILED"
        assert f"{key}: recorded {BASE[key]}, found other" in line.sentence
    line = base_model_line(BASE, {**BASE, "attention": "sdpa"})
    assert line.verdict == "DIFFERS"
    assert "attention: recorded eager, found sdpa" in line.sentence


def test_params_are_compared_leaf_by_leaf() -> None:
    recorded = {"defaults.tune": {"a": 1, "b": {"c": [1, 2]}}, "tasks.x.tune": {}}
    present = {"defaults": {"tune": {"a": 1, "b": {"c": [1, 2]}}}, "tasks": {"x": {"tune": {}}}}
    assert params_line(recorded, present).verdict == "OK"
    present["defaults"]["tune"]["b"]["c"] = [1, 3]  # type: ignore[index]
    line = params_line(recorded, present)
    assert (line.verdict, "defaults.tune.b.c: recorded [1, 2], found [1, 3]" in line.sentence) == ("FAILED", True)


def test_other_hardware_differs_and_is_said() -> None:
    assert same_or_differs("hardware", {"threads": 1}, {"threads": 1}).verdict == "OK"
    line = same_or_differs("hardware", {"threads": 1}, {"threads": 2, "gpu": "x"})
    assert line.verdict == "DIFFERS"
    assert "threads: recorded 1, here 2" in line.sentence
    assert "gpu: recorded None, here x" in line.sentence


@pytest.mark.parametrize(("exact", "verdict"), [(True, "FAILED"), (False, "DIFFERS")])
def test_another_tensor_fails_where_bits_must_repeat(exact: bool, verdict: str) -> None:
    assert tensor_line("s", "s", exact=exact, parted=None).verdict == "OK"
    assert tensor_line("s", "r", exact=exact, parted="trial 0, step 3: loss").verdict == verdict
    assert tensor_line("s", "s", exact=exact, parted="trial 0, step 3: loss").verdict == verdict


def test_predictions_must_be_equal_or_agree() -> None:
    recorded = table(["a"] * 20)
    assert predictions_line(recorded, recorded.copy(), exact=True).verdict == "OK"
    assert predictions_line(recorded, table(["a"] * 20, 0.51), exact=True).verdict == "FAILED"
    assert predictions_line(recorded, table(["a"] * 20, 0.51), exact=False).verdict == "DIFFERS"
    assert predictions_line(recorded, table(["a"] * 19 + ["b"]), exact=False).verdict == "DIFFERS"
    line = predictions_line(recorded, table(["a"] * 18 + ["b"] * 2), exact=False)
    assert line.verdict == "FAILED"
    assert line.sentence.startswith("90.0% of 20 test rows")
    assert predictions_line(recorded, table(["a"] * 19), exact=False).verdict == "FAILED"
    assert predictions_line(recorded, recorded.head(0), exact=False).verdict == "FAILED"
