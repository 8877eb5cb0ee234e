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


def change(workspace: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    path = workspace / "params.yaml"
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    edit(document["tasks"][TASK])
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")


def test_two_processes_learn_what_one_learns_and_an_error_is_raised_here(workspace: Path) -> None:
    for stage in ("ingest", "validate", "split", "tune"):
        run_stage(workspace, stage, TASK)
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
    assert read_json(bundle / "manifest.json")["row_order_sha256"] == manifest["row_order_sha256"]

    change(workspace, lambda sections: sections["prompt"]["verbalizers"].update(bad=" ", good=" "))
    with pytest.raises(TrainingError, match="verbalizer"):
        run_stage(workspace, "tune", TASK)
