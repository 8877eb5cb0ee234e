"""A checkout of many small tasks whose stages copy prepared outputs, committed: real DVC, Prefect, MLflow and engine around them."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from pipeline.layout import FILES, STAGES, Layout
from pipeline.records import read_jsonl, write_jsonl
from tests.flows.data_workspace import commit
from tests.flows.flow_workspace import PREPARED, REPOSITORY, make_prepared
from tests.registry.registry_workspace import TASK

EXCUSES = "excuses"  # a file <stage>@<task> in it lets that stage fail with its text

# Hands out the prepared outputs of one task under the name of another, so that fifty tasks need no fifty copies in each clone.
_COPY = """\
import pathlib, shutil, sys
from pipeline.layout import Layout, stage_named
stage, task, like = stage_named(sys.argv[1]), sys.argv[2], sys.argv[3]
excuse = pathlib.Path("excuses", f"{stage.name}@{task}")
if excuse.exists():
    sys.stderr.write(f"error: stage {stage.name} of {task}: {excuse.read_text()}\\n")
    sys.exit(1)
for name in stage.outputs:
    source = Layout(pathlib.Path("prepared"), like).path(name)
    target = Layout(pathlib.Path(), task).path(name)
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    elif source.suffix == ".json":
        target.write_text(source.read_text(encoding="utf-8").replace(f'"{like}"', f'"{task}"'), encoding="utf-8")
    else:
        shutil.copy(source, target)
    if source.suffix == ".parquet":
        digest = pathlib.Path(f"{source}.sha256").read_text(encoding="utf-8")
        pathlib.Path(f"{target}.sha256").write_text(digest.replace(source.name, target.name), encoding="utf-8")
"""


def make_fleet(root: Path, bundle: Path, tasks: Sequence[str]) -> Path:
    """A committed checkout of these tasks, each of which passes its gate."""
    make_prepared(root, bundle)
    (root / "copy_outputs.py").write_text(_COPY, encoding="utf-8")
    stages: dict[str, Any] = {}
    for stage in STAGES:
        outs = [FILES[name].format(task="${item}").rstrip("/") for name in stage.outputs]
        outs += [f"{path}.sha256" for path in outs if path.endswith(".parquet")]
        do = {"cmd": f"python copy_outputs.py {stage.name} ${{item}} {TASK}", "deps": [PREPARED], "outs": outs}
        stages[stage.name] = {"foreach": list(tasks), "do": do}
    log = Layout(root / PREPARED, TASK).path("train_log")
    write_jsonl(
        log, [{**event, "examples_per_second": 160.0} for event in read_jsonl(log)]
    )  # as a real log has it: the figures for Prometheus hold it
    _write(root / "dvc.yaml", {"stages": stages})
    document: Any = YAML(typ="safe").load(root / "params.yaml")
    document["tasks"] = dict.fromkeys(tasks, document["tasks"][TASK])
    _write(root / "params.yaml", document)
    ignored = (REPOSITORY / ".gitignore").read_text(encoding="utf-8")
    (root / ".gitignore").write_text(ignored, encoding="utf-8")
    (root / EXCUSES).mkdir()
    commit(root, "first")
    return root


def excuse(root: Path, stage: str, task: str, text: str) -> None:
    """Let a stage of a task fail."""
    (root / EXCUSES / f"{stage}@{task}").write_text(text, encoding="utf-8")
    commit(root, f"{stage} of {task} fails")


def _write(path: Path, document: Any) -> None:
    text = io.StringIO()
    YAML(typ="safe").dump(document, text)
    path.write_text(text.getvalue(), encoding="utf-8")
