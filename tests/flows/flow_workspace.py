"""Checkouts for the shell's tests: git and DVC with trivial stages, or with stages that hand out prepared outputs."""

import io
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from ruamel.yaml import YAML

from pipeline.data.profiles import ARRAYS_FILE, RECORD_FILE, write_reference
from pipeline.layout import FILES, STAGES, Layout
from pipeline.params_file import replace_source
from pipeline.records import read_json, sha256_file, write_json, write_parquet
from tests.registry.registry_workspace import TASK, write_outputs

REPOSITORY = Path(__file__).resolve().parents[2]
PREPARED, SOURCE = "prepared", "rows.csv"
REASON = "accuracy: FAIL: 0.6250 is below 0.9."

_COPY = """\
import pathlib, shutil, sys
from pipeline.layout import Layout, stage_named
stage, task = stage_named(sys.argv[1]), sys.argv[2]
excuse = pathlib.Path("prepared", f"{stage.name}.error")
if excuse.exists():
    sys.stderr.write(f"error: stage {stage.name} of {task}: {excuse.read_text()}\\n")
    sys.exit(1)
for name in stage.outputs:
    source = Layout(pathlib.Path("prepared"), task).path(name)
    target = Layout(pathlib.Path(), task).path(name)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, target, dirs_exist_ok=True) if source.is_dir() else shutil.copy(source, target)
    if source.suffix == ".parquet":
        shutil.copy(f"{source}.sha256", f"{target}.sha256")
"""


def call(*command: str, folder: Path) -> None:
    """Run a command that must succeed."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (command, done.stdout, done.stderr)


def make_checkout(root: Path, stages: Mapping[str, Any]) -> Path:
    """A git repository with DVC and a dvc.yaml of these stages at `root`."""
    root.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    YAML(typ="safe").dump({"stages": dict(stages)}, text)
    (root / "dvc.yaml").write_text(text.getvalue(), encoding="utf-8")
    call("git", "init", "--quiet", folder=root)
    call(sys.executable, "-m", "dvc", "init", "--quiet", folder=root)
    return root


def make_trivial(root: Path, code: Mapping[str, str], deps: Mapping[str, list[str]] | None = None) -> Path:
    """A checkout whose stages are these lines of Python, for the task `demo`; stage x must write x.txt."""
    for name, lines in code.items():
        root.mkdir(parents=True, exist_ok=True)
        (root / f"{name}.py").write_text(f"import os, pathlib, signal, subprocess, sys, time\n{lines}\n", encoding="utf-8")
    stages: dict[str, Any] = {
        name: {"foreach": ["demo"], "do": {"cmd": f"python {name}.py", "outs": [f"{name}.txt"], "deps": (deps or {}).get(name, [])}}
        for name in code
    }
    return make_checkout(root, stages)


def writes(name: str) -> str:
    """Code of a stage that writes its output."""
    return f"pathlib.Path('{name}.txt').write_text('{name}')"


def living(group: int) -> list[str]:
    """The processes of a group, without those that are dead and only wait to be reaped."""
    found: list[str] = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(status.parent.name)
    return found


def make_prepared(root: Path, bundle: Path) -> Path:
    """A checkout of the task TASK whose stages copy prepared outputs, among them this real bundle."""
    stages: dict[str, Any] = {}
    for stage in STAGES:
        outs = [FILES[name].format(task=TASK).rstrip("/") for name in stage.outputs]
        outs += [f"{path}.sha256" for path in outs if path.endswith(".parquet")]
        do = {"cmd": f"python copy_outputs.py {stage.name} {TASK}", "deps": [PREPARED], "outs": outs}
        stages[stage.name] = {"foreach": [TASK], "do": do}
    make_checkout(root, stages)
    (root / "copy_outputs.py").write_text(_COPY, encoding="utf-8")
    text = (REPOSITORY / "params.yaml").read_text(encoding="utf-8")
    (root / "params.yaml").write_text(replace_source(text, TASK, {"kind": "file", "path": SOURCE}), encoding="utf-8")
    (root / SOURCE).write_text("the rows that ingest read\n", encoding="utf-8")
    prepare(root, bundle, "promote")
    return root


def prepare(root: Path, bundle: Path, decision: str, champion: int | None = None) -> None:
    """Write the outputs that the stages of `make_prepared` will hand out: `bundle` replaces the made-up one, and they were compared with `champion`."""
    layout = Layout(root / PREPARED, TASK)
    layout.root.mkdir(exist_ok=True)
    write_outputs(layout.root, 1, decision)
    (layout.root / "dvc.lock").unlink()
    (layout.root / "params.yaml").unlink()
    shutil.rmtree(layout.path("bundle"))
    shutil.copytree(bundle, layout.path("bundle"))
    if champion is not None:
        for source, target in (("data_profile", RECORD_FILE), ("profile_arrays", ARRAYS_FILE)):
            shutil.copy(layout.path(source), layout.path("reference") / target)
        write_reference(layout.path("reference"), asked="champion", version=champion, reason=None)
        write_json(layout.path("champion") / "champion.json", {"version": champion, "manifest_sha256": None, "reason": None})
        write_json(layout.path("attempts"), {"task": TASK, "champion": champion, "test_sha256": f"{0:064}", "registered": []})
    for name in ("quarantined", "set_aside", "predictions", "champion_predictions", "behaviour_predictions", "bias_scores"):
        write_parquet(layout.path(name), pd.DataFrame({"row_id": ["a"], "text": ["late again"], "label": ["negative"]}))
    ingest = read_json(layout.path("ingest_report"))
    write_json(layout.path("ingest_report"), {**ingest, "source_sha256": sha256_file(root / SOURCE)})
    layout.path("data_docs").mkdir(exist_ok=True)
    (layout.path("data_docs") / "index.html").write_text("<html></html>", encoding="utf-8")
    passed = decision == "promote"
    check = {
        "name": "accuracy",
        "verdict": {"promote": "PASS", "ask": "INCONCLUSIVE", "refuse": "FAIL"}[decision],
        "value": 0.625,
        "low": 0.525,
        "high": 0.725,
        "n": 100,
    }
    gate = read_json(layout.path("gate"))
    write_json(
        layout.path("gate"),
        {**gate, "checks": [{**check, "limit": 0.9, "rule": "", "sentence": ""}], "reasons": [] if passed else [REASON]},
    )


def environment() -> dict[str, str]:
    """This process's environment for a promptmill started elsewhere, without settings that would lead it to other servers."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_", "PROMPTMILL_"))}
    return {**kept, "PYTHONPATH": str(REPOSITORY), "MLFLOW_DISABLE_TELEMETRY": "true"}


def promptmill(*arguments: str, folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own, with `more` in its environment."""
    command = [sys.executable, "-m", "flows.cli", *arguments]
    return subprocess.run(command, cwd=folder, env={**environment(), **more}, capture_output=True, text=True, check=False, timeout=1800)
