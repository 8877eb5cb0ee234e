"""What a flow and a worker hand each other, on real git, DVC and a folder as DVC remote; the Prefect side is in tests/services."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.dvc_cache import cache_folder, cached_object
from flows.remote_checkpoints import FOLDER, RemoteCheckpoints
from flows.remote_stage import accept
from flows.stage_order import StageAnswer, StageOrder, input_paths, make_order, task_entries
from flows.worker_workspace import workspace_for
from flows.workspace import changed_stages
from pipeline.dvc_file import tracked_paths
from pipeline.errors import StageFailed, WorkspaceError
from pipeline.layout import stage_named
from pipeline.params import ExecutionParams
from pipeline.records import sha256_file, write_parquet
from tests.faults.tiny_checkout import change, commit, git, make_checkout
from tests.stages.conftest import TASK


def output_paths(task: str, stage: str) -> list[str]:
    return list(tracked_paths(stage_named(stage).outputs, task))


SPLITS = ("train", "validation", "test")


def dvc(root: Path, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=root, check=True, capture_output=True)


@pytest.fixture(scope="module")
def made(repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout whose split and tune stages are said to have run, with a folder as DVC remote."""
    import pandas as pd

    base = tmp_path_factory.mktemp("site")
    root = make_checkout(repo_root, base / "flow")
    dvc(root, "remote", "add", "--default", "shared", str(base / "remote"))
    for name in (*SPLITS, "set_aside"):
        write_parquet(root / f"data/splits/{TASK}/{name}.parquet", pd.DataFrame({"text": [name], "label": ["good"]}))
    (root / f"prompts/{TASK}").mkdir(parents=True)
    (root / f"prompts/{TASK}/manifest.json").write_text("{}", encoding="utf-8")
    accepted = f"data/validated/{TASK}/accepted.parquet"
    for path in (accepted, f"{accepted}.sha256", *output_paths(TASK, "split"), *output_paths(TASK, "tune")):
        if not (root / path).exists():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(path, encoding="utf-8")
    commit(root, "the remote")
    dvc(root, "commit", "--force", "--quiet", f"split@{TASK}", f"tune@{TASK}")
    dvc(root, "push", "--quiet", *input_paths(TASK, "tune"))
    return root


@pytest.fixture
def checkout(made: Path, tmp_path: Path) -> Path:
    """A copy to change at will, with a remote of its own."""
    shutil.copytree(made.parent, tmp_path / "site", symlinks=True)
    root = tmp_path / "site" / "flow"
    dvc(root, "remote", "modify", "--local", "shared", "url", str(tmp_path / "site" / "remote"))
    return root


def order(root: Path) -> StageOrder:
    return make_order(root, TASK, "tune", checkpoints=True, force=False)


def clone(checkout: Path) -> Path:
    worker = checkout.parent / "worker"
    git(checkout, "clone", "--quiet", ".", str(worker))
    shutil.copytree(checkout / "models", worker / "models")
    shutil.copy(checkout / ".dvc" / "config.local", worker / ".dvc" / "config.local")
    return worker


def test_same_follows_tune_and_local_needs_no_pool() -> None:
    rest: dict[str, Any] = {
        "remote_checkpoints": True,
        "start_seconds": 1.0,
        "stage_seconds": 1.0,
        "restarts": 0,
        "processes": 1,
    }
    places = {("local", "same"): {}, ("gpu", "same"): {"tune": "gpu", "score": "gpu"}, ("gpu", "local"): {"tune": "gpu"}}
    places |= {("local", "gpu"): {"score": "gpu"}, ("gpu", "cpu"): {"tune": "gpu", "score": "cpu"}}
    for (tune, score), pools in places.items():
        assert ExecutionParams(tune=tune, score=score, **rest).pools() == pools


def test_an_order_holds_what_the_stage_needs_and_is_text(checkout: Path) -> None:
    made = order(checkout)
    assert (made.commit, list(made.params)) == (git(checkout, "rev-parse", "HEAD"), ["tune", "prompt", "base_model"])
    assert list(made.entries) == [f"split@{TASK}"], "validate has not run, and tune reads nothing else"
    assert StageOrder(**json.loads(json.dumps(made.parameters()))) == made


def test_uncommitted_changes_are_refused_and_named(checkout: Path) -> None:
    change(checkout, lambda sections: sections["tune"].update(learning_rate=0.06))
    with pytest.raises(
        WorkspaceError, match=r"has uncommitted changes, and a worker runs stage tune at the commit .*execution\.tune: local"
    ):
        order(checkout)


def test_a_workspace_has_the_commit_the_inputs_and_the_base_model(checkout: Path) -> None:
    worker, asked = clone(checkout), order(checkout)
    with workspace_for(worker, asked) as folder:
        assert folder.is_relative_to(worker)
        assert git(folder, "rev-parse", "HEAD") == asked.commit
        for path in input_paths(TASK, "tune"):
            assert sha256_file(folder / path) == sha256_file(checkout / path)
        assert (folder / "models/tiny").resolve() == (worker / "models/tiny").resolve()
        assert cache_folder(folder).resolve() == cache_folder(worker).resolve()
        assert list(task_entries(folder, TASK)) == [f"split@{TASK}"]
    git(checkout, "commit", "--quiet", "--allow-empty", "-m", "made after the clone")
    later = order(checkout)
    with workspace_for(worker, later) as folder:
        assert git(folder, "rev-parse", "HEAD") == later.commit, "it is fetched from the clone's remote"


def test_what_a_worker_lacks_is_named(checkout: Path) -> None:
    worker, asked = clone(checkout), order(checkout)

    def refused(wrong: StageOrder) -> str:
        with pytest.raises(WorkspaceError) as caught, workspace_for(worker, wrong):
            pass
        return str(caught.value)

    assert f"does not have the commit {'0' * 40}" in refused(replace(asked, commit="0" * 40))
    assert "sections ['tune']" in refused(replace(asked, params={**asked.params, "tune": {"learning_rate": 1.0}}))
    shutil.rmtree(checkout.parent / "remote")
    shutil.rmtree(worker / ".dvc" / "cache", ignore_errors=True)
    assert f"data/splits/{TASK}/train.parquet" in refused(asked)
    (worker / ".dvc" / "config.local").unlink()
    git(worker, "config", "core.worktree", str(worker))
    config = worker / ".promptmill" / "workspaces" / TASK / "checkout" / ".dvc" / "config"
    assert "shared" in config.read_text(), "the remote is committed, so that a clone has it"


def test_without_a_remote_the_error_says_how_to_add_one(checkout: Path) -> None:
    dvc(checkout, "remote", "remove", "shared")
    (checkout / ".dvc" / "config.local").unlink()
    commit(checkout, "no remote")
    with (
        pytest.raises(WorkspaceError, match="has no DVC remote, and files travel to and from workers through one"),
        workspace_for(clone_without_local(checkout), order(checkout)),
    ):
        pass


def clone_without_local(checkout: Path) -> Path:
    worker = checkout.parent / "worker"
    git(checkout, "clone", "--quiet", ".", str(worker))
    return worker


def answered(checkout: Path) -> StageAnswer:
    """A worker's answer for the stage as it is in the checkout, with its outputs on the remote and no longer here."""
    paths = output_paths(TASK, "tune")
    dvc(checkout, "push", "--quiet", *paths)
    from flows.dvc_remote import output_sha256

    entry = task_entries(checkout, TASK)[f"tune@{TASK}"]
    answer = StageAnswer(entry, output_sha256(checkout, paths), "run", 1.0, "gpu-box")
    assert StageAnswer.of_markdown(answer.markdown()) == answer
    lock = checkout / "dvc.lock"
    document = yaml.safe_load(lock.read_text(encoding="utf-8"))
    del document["stages"][f"tune@{TASK}"]
    lock.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    shutil.rmtree(checkout / f"prompts/{TASK}")
    for out in entry["outs"]:
        (checkout / out["path"]).unlink(missing_ok=True)
        cached_object(cache_folder(checkout), out["md5"]).unlink()
    return answer


def test_an_answer_is_merged_pulled_and_current(checkout: Path) -> None:
    answer = answered(checkout)
    accept(checkout, TASK, "tune", answer)
    assert (checkout / f"prompts/{TASK}/manifest.json").read_text() == "{}"
    assert changed_stages(checkout, TASK, ("tune",)) == []
    assert list(task_entries(checkout, TASK)) == [f"split@{TASK}", f"tune@{TASK}"]


Spoil = Callable[[Path, StageAnswer], StageAnswer]


def other_bytes(checkout: Path, answer: StageAnswer) -> StageAnswer:
    """The remote hands out another file under the same md5. DVC looks at a file in a folder only when it is writable, and never at one on S3."""
    md5 = next(out["md5"] for out in answer.entry["outs"] if out["path"].endswith("train_log.jsonl"))
    altered = checkout.parent / "remote" / "files" / "md5" / md5[:2] / md5[2:]
    altered.chmod(0o644)
    altered.write_text("{}\n", encoding="utf-8")
    altered.chmod(0o444)
    return answer


def other_code(_checkout: Path, answer: StageAnswer) -> StageAnswer:
    deps = [{**dep, "md5": "0" * 32} if dep["path"] == "pipeline/engine/training.py" else dep for dep in answer.entry["deps"]]
    return replace(answer, entry={**answer.entry, "deps": deps})


@pytest.mark.parametrize(
    ("spoil", "words"), [(other_bytes, "is not what the worker gpu-box wrote"), (other_code, "with other code, params or inputs")]
)
def test_an_answer_that_does_not_fit_is_refused_and_the_lock_stays(checkout: Path, spoil: Spoil, words: str) -> None:
    answer = spoil(checkout, answered(checkout))
    before = (checkout / "dvc.lock").read_bytes()
    with pytest.raises(WorkspaceError, match=words):
        accept(checkout, TASK, "tune", answer)
    assert (checkout / "dvc.lock").read_bytes() == before


def test_a_text_that_is_no_answer_is_named() -> None:
    with pytest.raises(StageFailed, match="another version of promptmill"):
        StageAnswer.of_markdown("done")


def test_checkpoints_travel_whole_or_not_at_all(checkout: Path, tmp_path: Path) -> None:
    said: list[str] = []

    def on(machine: str) -> tuple[RemoteCheckpoints, Path]:
        place = tmp_path / machine
        place.mkdir(exist_ok=True)
        return RemoteCheckpoints(checkout, TASK, "tune", said.append), place

    first, place = on("first")
    assert first.fetch(place) == []
    for content in (b"step 5", b"step 10", b"step 15"):
        (place / "new").write_bytes(content)
        (place / "new").replace(place / "ab12.safetensors")
        with first.copying(place):
            pass
    second, other = on("second")
    assert second.fetch(other) == ["ab12.safetensors"]
    assert (other / "ab12.safetensors").read_bytes() == b"step 15"
    assert second.fetch(other) == [], "what is there already is not fetched again"

    remote = checkout.parent / "remote" / FOLDER / TASK / "tune"
    slot = json.loads((remote / "ab12.safetensors.json").read_text())["slot"]
    assert (remote / f"ab12.safetensors.{1 - slot}").read_bytes() == b"step 10", (
        "the slot that is written next is not the one that is named"
    )
    (remote / f"ab12.safetensors.{slot}").write_bytes(b"step 1")
    third, empty = on("third")
    assert (third.fetch(empty), list(empty.iterdir())) == ([], [])
    assert "is not the one that was copied there" in said[-1]
    second.forget()
    assert list(remote.iterdir()) == []
