"""Twenty versions with other seeds, rates, methods, starts and lengths, each made again: EXACT on one machine."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.reproduction import reproduce_version
from pipeline.reproduction import EXACT
from tests.faults.tiny_checkout import change, commit, make_checkout, record_and_register, run_stages
from tests.stages.conftest import TASK

CHANGES: list[dict[str, Any]] = [
    *({"trials": {"seeds": [seed]}} for seed in range(1, 6)),
    *({"learning_rate": rate} for rate in (0.01, 0.02, 0.1)),
    *({"num_virtual_tokens": count} for count in (2, 6, 8)),
    {"optimizer": "adafactor", "learning_rate": 0.3},
    {"method": {"kind": "prefix_tuning"}, "learning_rate": 0.01},
    {"method": {"kind": "p_tuning"}},
    {"method": {"kind": "residual_prompt_tuning"}},
    {"init": {"kind": "sample_vocabulary"}},
    {"init": {"kind": "class_labels"}},
    {"batch_size": 8, "maximum_steps": 20, "evaluate_every": 5},
    {"trials": {"seeds": [0, 1, 2], "halving": True}, "maximum_steps": 18},
    {"warmup_ratio": 0.3, "schedule": "constant"},
]


def change_tune(root: Path, values: dict[str, Any], before: dict[str, Any]) -> None:
    """Let the section `tune` be `before` with these values."""
    change(root, lambda sections: sections.update(tune={**before, **values}))


@pytest.mark.faults
@pytest.mark.parametrize("part", range(4))
def test_versions_are_made_again_exactly(
    repo_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int, count: Callable[[str], None]
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_SQLALCHEMYSTORE_POOLCLASS", "NullPool")
    assert len(CHANGES) == 20
    root = make_checkout(repo_root, tmp_path / "checkout")
    original: list[dict[str, Any]] = []
    change(root, lambda sections: original.append(dict(sections["tune"])))
    verdicts: list[str] = []
    for number, values in enumerate(CHANGES[part * 5 : part * 5 + 5], 1):
        change_tune(root, values, original[0])
        commit(root, f"version {number}")
        run_stages(root, "ingest" if number == 1 else "tune")
        assert record_and_register(root) == number
        record = reproduce_version(root, TASK, number)
        verdicts.append(record["verdict"])
        assert record["verdict"] == EXACT, (values, record["lines"][-1])
    count(f"{verdicts.count(EXACT)} of {len(verdicts)} versions EXACT")
    assert verdicts == [EXACT] * 5
