"""A disk that is full in the middle of a write: no half-written file under a final name, and the champion still loads."""

import hashlib
import os
import random
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch

from pipeline.engine.checkpoint import Checkpoint, Snapshot
from pipeline.errors import PromptmillError
from pipeline.manifest import verify_bundle, write_manifest
from pipeline.records import checksum_file, replacing_folder, verify_parquet, write_json, write_jsonl, write_parquet
from pipeline.registry.promotion import promote
from pipeline.registry.registry import download_bundle
from tests.registry.registry_workspace import TASK, Workspace

SIZE = "24m"
ROWS = 4000
CHUNK = 1 << 16


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own of SIZE in memory; only root may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "none", str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no small file system can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def write_everything(folder: Path, seed: int) -> None:
    """Each of our kinds of files, with content that the seed decides."""
    randomness = random.Random(seed)
    texts = [randomness.randbytes(40).hex() for _ in range(ROWS)]
    write_json(folder / "record.json", {"texts": texts})
    write_jsonl(folder / "log.jsonl", ({"text": text} for text in texts))
    write_parquet(folder / "table.parquet", pd.DataFrame({"text": texts}))
    with replacing_folder(folder / "bundle") as bundle:
        for name in ("adapter_config.json", "adapter_model.safetensors", "template.json", "verbalizers.json"):
            (bundle / name).write_text("\n".join(texts[:1000]), encoding="utf-8")
        write_manifest(bundle, {"seed": seed})
    tensors = {"t": torch.tensor([randomness.random() for _ in range(20_000)])}
    Checkpoint(path=folder / "checkpoint.safetensors", key="k", every=1).save(Snapshot(tensors=tensors, state={"step": seed}, records=[]))


def finals(folder: Path) -> dict[str, str]:
    """Digest of everything under a final name, a folder as one thing; a checkpoint's bytes are never twice the same, so that one is loaded."""
    found: dict[str, str] = {}
    for name in ("record.json", "log.jsonl", "table.parquet", "bundle"):
        path = folder / name
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path] if path.exists() else []
        found[name] = hashlib.sha256(b"".join(file.name.encode() + file.read_bytes() for file in files)).hexdigest() if files else "absent"
    return found


def unexpected(message: str) -> None:
    raise AssertionError(message)


def fill(folder: Path, leave: int) -> Path:
    """Take all space of the disk but about `leave` bytes."""
    filler = folder / "filler"
    free = os.statvfs(folder)
    wanted = max(0, free.f_bavail * free.f_frsize - leave)
    with filler.open("wb") as stream:
        while wanted > 0:
            stream.write(b"\0" * min(CHUNK, wanted))
            wanted -= CHUNK
    return filler


def in_child(act: Callable[[], object]) -> int:
    """Run in a fork, so that what a full disk did to open databases stays there: 0, or 1 for an error of ours or of the system."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        act()
    except (OSError, PromptmillError):
        os._exit(1)
    except BaseException:  # noqa: BLE001  a fork must not come back into the test
        os._exit(70)
    os._exit(0)


@pytest.mark.parametrize("offsets", [4, pytest.param(100, marks=pytest.mark.faults)])
def test_no_partial_file_and_a_champion_that_loads(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offsets: int, count: Callable[[str], None]
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_SQLALCHEMYSTORE_POOLCLASS", "NullPool")
    monkeypatch.chdir(tmp_path)
    workspace = Workspace(small_disk / "w")
    workspace.root.mkdir()
    workspace.make(1)
    assert workspace.register() == 1
    promote(root=workspace.root, task=TASK, version=1)
    folder = small_disk / "files"
    write_everything(folder, 0)
    known = {0: finals(folder)}
    write_everything(small_disk / "other", 1)
    known[1] = finals(small_disk / "other")
    needed = sum(file.stat().st_size for file in (small_disk / "other").rglob("*"))
    subprocess.run(["rm", "-rf", str(small_disk / "other")], check=True)
    allowed = {name: {record[name] for record in known.values()} for name in known[0]} | {
        "bundle": {"absent", known[0]["bundle"], known[1]["bundle"]}
    }
    randomness = random.Random(offsets)
    outcomes = {0: 0, 1: 0}
    for attempt in range(offsets):
        filler = fill(small_disk, randomness.randrange(int(needed * 0.9)))
        code = in_child(partial(write_everything, folder, (attempt + 1) % 2))
        assert code in outcomes, f"attempt {attempt} ended with {code}"
        outcomes[code] += 1
        found = finals(folder)
        assert {name: digest for name, digest in found.items() if digest not in allowed[name]} == {}, f"attempt {attempt}"
        assert verify_parquet(folder / "table.parquet")
        assert checksum_file(folder / "table.parquet").is_file()
        if found["bundle"] != "absent":
            verify_bundle(folder / "bundle")
        snapshot = Checkpoint(path=folder / "checkpoint.safetensors", key="k", every=1, say=unexpected).load()
        assert snapshot is not None
        assert snapshot.state["step"] in (0, 1)
        loads = in_child(partial(download_bundle, root=workspace.root, task=TASK, version=1, destination=tmp_path / f"champion-{attempt}"))
        assert loads == 0, f"attempt {attempt}: the champion does not load"
        filler.unlink()
        assert [path.name for path in folder.iterdir() if path.name.endswith(".partial")] == []
    count(f"{offsets} offsets, {outcomes[1]} writes refused by the full disk and {outcomes[0]} that fitted; the champion loaded after each")
    assert outcomes[1], outcomes
