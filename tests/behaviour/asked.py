"""Params of the section behaviour, and answers to probes made by a rule instead of a model."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from ruamel.yaml import YAML

from pipeline.behaviour.probes import Probe
from pipeline.params import BehaviourParams

DEFAULTS: dict[str, Any] = YAML(typ="safe").load(Path(__file__).parents[2] / "params.yaml")["defaults"]["behaviour"]
LABELS = ("bad", "good")


def behaviour(**changes: Any) -> BehaviourParams:
    return BehaviourParams.model_validate({**DEFAULTS, **changes})


def answered(probes: Sequence[Probe], goodness: Callable[[str], float]) -> pd.DataFrame:
    """What a model would answer that gives each text the probability `goodness` of good."""
    lines = []
    for probe in probes:
        text = "\n".join(probe.fields.values())
        good = goodness(text)
        lines.append((probe.probe, probe.row_id, probe.side, text, probe.label, "good" if good > 0.5 else "bad", 1 - good, good))
    return pd.DataFrame(lines, columns=["probe", "row_id", "side", "text", "label", "prediction", "p.bad", "p.good"])
