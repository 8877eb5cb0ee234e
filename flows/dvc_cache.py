"""DVC's cache as files: where the content of an md5 lies, whether it is that content, and what to do when it is not.

DVC trusts the objects of its cache: `dvc checkout` hands out an altered one with exit code 0, and even a stage that runs again under
`dvc repro --force` is given the altered object in place of what it wrote. Only removing the object helps.
"""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from flows.terminal import answer
from flows.workspace import LOCK_FILE, check_checkout
from pipeline.errors import StageInputError, WorkspaceError
from pipeline.layout import FILES, Layout, find_root
from pipeline.records import checksum_file, remove_parquet, verify_parquet
from pipeline.registry.tracking import locked_outputs, read_lock

DIRECTORY = ".dir"  # DVC's suffix of the md5 of a folder, whose object lists the files as JSON


def repair_task(task: str) -> int:
    """Remove altered copies of the task's files from the cache and the checkout, and say which; returns the exit code."""
    root = find_root(Path.cwd())
    check_checkout(root, task)
    outputs = locked_outputs(read_lock(root / LOCK_FILE), task)
    objects = dict(_objects(cache_folder(root), outputs))
    altered = [(path, name) for path, (md5, name) in objects.items() if path.is_file() and md5_file(path) != md5]
    for path, _ in altered:
        path.unlink()
    removed = [f"{path} (the cached {name})" for path, name in altered] + [str(path) for path in _clean_checkout(Layout(root, task))]
    if removed:
        answer(f"Removed {len(removed)} altered files:\n" + "\n".join(f"  {line}" for line in removed))
        answer(
            f"`promptmill run {task}` makes them again. If `dvc pull` brings one back, a DVC remote holds an altered copy: see docs/data.md."
        )
    else:
        answer(f"Nothing to repair: {len(objects)} cached files of {task} and its tables in the checkout are as they were written.")
    return 0


def cache_folder(root: Path) -> Path:
    """The folder of the cache's objects; raises WorkspaceError when DVC does not say where its cache is."""
    command = [sys.executable, "-m", "dvc", "cache", "dir"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, check=False)
    if done.returncode != 0 or not done.stdout.strip():
        raise WorkspaceError(f"`dvc cache dir` failed in {root}: {' '.join(done.stderr.split())} Correct .dvc/config.")
    return root / done.stdout.strip() / "files" / "md5"


def cached_object(cache: Path, md5: str) -> Path:
    """Where the content of that md5 lies in the cache, if it is there."""
    return cache / md5[:2] / md5[2:]


def cached(root: Path, md5: str) -> Path:
    """The file in the cache with that md5; raises WorkspaceError when it is not there any more."""
    path = cached_object(cache_folder(root), md5)
    if not path.is_file():
        raise WorkspaceError(
            f"The data with DVC's md5 {md5} is not in the cache any more: {path} does not exist. If a DVC remote holds it, `dvc fetch --all-commits` brings "
            "it back; else compare with another version."
        )
    return path


def md5_file(path: Path) -> str:
    """Hex md5 of a file's bytes, DVC's name for them."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _objects(cache: Path, outputs: Mapping[str, str]) -> Iterator[tuple[Path, tuple[str, str]]]:
    """(object, (md5 of its content, path of the output)) of every output, and of every file below a folder."""
    for name, md5 in outputs.items():
        path = cached_object(cache, md5)
        yield path, (md5.removesuffix(DIRECTORY), name)
        if md5.endswith(DIRECTORY) and path.is_file() and md5_file(path) == md5.removesuffix(DIRECTORY):
            for entry in json.loads(path.read_bytes()):
                yield cached_object(cache, entry["md5"]), (entry["md5"], f"{name}/{entry['relpath']}")


def _clean_checkout(layout: Layout) -> Iterator[Path]:
    """Remove the task's tables that do not have their checksum; yields the path of each."""
    for path in (layout.path(name) for name, pattern in FILES.items() if pattern.endswith(".parquet")):
        if path.is_file() or checksum_file(path).is_file():
            try:
                verify_parquet(path)
            except StageInputError:
                remove_parquet(path)
                yield path
