"""The stage tune in two processes of this machine (gloo), started by a parameter, against one process."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from pipeline.__main__ import run_stage
from pipeline.errors import TrainingError
from pipeline.layout import Layout
from pipeline.records import read_json
from tests.stages.conftest import TASK


def change(workspace: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    path = workspace / "params.yaml"
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    edit(document["tasks"][TASK])
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")


def prepare(workspace: Path) -> None:
    for stage in ("ingest", "validate", "split"):
        run_stage(workspace, stage, TASK)


def test_two_processes_learn_what_one_learns(workspace: Path) -> None:
    prepare(workspace)
    run_stage(workspace, "tune", TASK)
    bundle = Layout(workspace, TASK).path("bundle")
    weights = bundle / "adapter_model.safetensors"
    alone, manifest = load_file(weights), read_json(bundle / "manifest.json")
    weights.unlink()

    change(workspace, lambda sections: sections.update(execution={"processes": 2}))
    run_stage(workspace, "tune", TASK)
    together = load_file(weights)
    assert together.keys() == alone.keys()
    differences = [float((together[name] - alone[name]).abs().max()) for name in alone]
    assert max(differences) <= 1e-6
    shared = read_json(bundle / "manifest.json")
    assert (manifest["training"]["processes"], shared["training"]["processes"]) == (1, 2)
    assert shared["row_order_sha256"] == manifest["row_order_sha256"]


@pytest.mark.slow
def test_what_one_of_two_processes_says_is_raised_here(workspace: Path) -> None:
    prepare(workspace)
    change(workspace, lambda sections: [sections.update(execution={"processes": 2}), sections["tune"].update(num_virtual_tokens=5000)])
    with pytest.raises(TrainingError, match=r"The longest example needs 50\d\d tokens with its prefix"):
        run_stage(workspace, "tune", TASK)
