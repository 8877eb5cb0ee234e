"""A checkout of many small tasks whose stages copy prepared outputs, committed: real DVC, Prefect, MLflow and engine around them."""

import io
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from pipeline.layout import FILES, STAGES, Layout
from tests.flows.data_workspace import commit
from tests.flows.flow_workspace import PREPARED, REPOSITORY, make_prepared
from tests.registry.registry_workspace import TASK

EXCUSES = "excuses"  # a file <stage>@<task> in it lets that stage fail with its text


def make_fleet(root: Path, bundle: Path, tasks: Sequence[str]) -> Path:
    """A committed checkout of these tasks, each of which passes its gate."""
    make_prepared(root, bundle)
    for task in tasks:
        _prepare(root, task)
    stages: dict[str, Any] = {}
    for stage in STAGES:
        outs = [FILES[name].format(task="${item}").rstrip("/") for name in stage.outputs]
        outs += [f"{path}.sha256" for path in outs if path.endswith(".parquet")]
        do = {"cmd": f"python copy_outputs.py {stage.name} ${{item}}", "deps": [PREPARED], "outs": outs}
        stages[stage.name] = {"foreach": list(tasks), "do": do}
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


def _prepare(root: Path, task: str) -> None:
    """The prepared outputs of TASK under the name of another task."""
    source, target = Layout(root / PREPARED, TASK), Layout(root / PREPARED, task)
    for name in FILES:
        path, copy = source.path(name), target.path(name)
        if not path.exists():
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            shutil.copytree(path, copy)
        elif path.suffix == ".json":
            copy.write_text(path.read_text(encoding="utf-8").replace(f'"{TASK}"', f'"{task}"'), encoding="utf-8")
        else:
            shutil.copy(path, copy)
        if path.suffix == ".parquet":
            digest = Path(f"{path}.sha256").read_text(encoding="utf-8")
            Path(f"{copy}.sha256").write_text(digest.replace(path.name, copy.name), encoding="utf-8")


def _write(path: Path, document: Any) -> None:
    text = io.StringIO()
    YAML(typ="safe").dump(document, text)
    path.write_text(text.getvalue(), encoding="utf-8")
