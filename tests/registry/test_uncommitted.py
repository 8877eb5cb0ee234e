"""A version made with uncommitted changes is not promoted until they are committed, or params.yaml allows it."""

import subprocess
from pathlib import Path

import pytest
import yaml

from pipeline.errors import NotPromoted
from pipeline.registry.connection import connect
from pipeline.registry.promotion import promote
from pipeline.registry.uncommitted import reason_against
from tests.registry.registry_workspace import TASK, Workspace


def git(root: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    return subprocess.run(["git", *identity, *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.strip()


def commit(root: Path) -> str:
    git(root, "add", "code.py", "params.yaml")
    git(root, "commit", "--quiet", "--allow-empty", "-m", "x")
    return git(root, "rev-parse", "HEAD")


def allow(root: Path) -> None:
    path = root / "params.yaml"
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    document["tasks"][TASK]["promotion"] = {"allow_uncommitted": True}
    path.write_text(yaml.safe_dump(document, sort_keys=False, allow_unicode=True), encoding="utf-8")


def test_uncommitted_changes_stand_in_the_way_until_they_are_committed_or_allowed(workspace: Workspace) -> None:
    root = workspace.root
    workspace.make(1)
    (root / "code.py").write_text("x = 1\n", encoding="utf-8")
    git(root, "init", "--quiet")
    first = commit(root)
    (root / "code.py").write_text("x = 2\n", encoding="utf-8")
    assert workspace.register() == 1
    with pytest.raises(NotPromoted, match=rf"version 1 was made with changes that are not committed \(on top of {first}"):
        promote(root=root, task=TASK, version=1)
    assert str(reason_against(root=root, task=TASK, version=1)).startswith(f"{TASK} version 1 was made with changes")
    client = connect(root=root).client
    version = client.get_model_version(TASK, "1")
    diff = Path(client.download_artifacts(version.run_id, "code.diff")).read_text(encoding="utf-8")
    assert "+x = 2" in diff
    second = commit(root)
    assert workspace.register() == 1
    assert client.get_model_version(TASK, "1").tags["promptmill.git_commit"] == second
    assert reason_against(root=root, task=TASK, version=1) is None
    assert promote(root=root, task=TASK, version=1)["version"] == 1

    workspace.make(2)
    (root / "code.py").write_text("x = 3\n", encoding="utf-8")
    allow(root)
    assert workspace.register() == 2
    assert client.get_model_version(TASK, "2").tags["promptmill.dirty"] == "true"
    assert reason_against(root=root, task=TASK, version=2) is None
    assert promote(root=root, task=TASK, version=2)["previous_champion"] == 1
