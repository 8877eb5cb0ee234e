"""DVC's cache as files: where the content of an md5 lies, whether it is that content, and what to do when it is not.

DVC trusts the objects of its cache: `dvc checkout` hands out an altered one with exit code 0, and even a stage that runs again under
`dvc repro --force` is given the altered object in place of what it wrote. Only removing the object helps.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flows.dvc_command import run_dvc
from flows.dvc_state import LOCK_FILE
from flows.terminal import answer
from flows.workspace import check_checkout
from pipeline.errors import StageInputError, WorkspaceError
from pipeline.layout import FILES, Layout, find_root
from pipeline.params import FileSource, TaskParams
from pipeline.params_file import read_yaml
from pipeline.records import checksum_file, remove_parquet, verify_parquet
from pipeline.registry.tracking import locked_outputs, read_lock

POINTER_SUFFIX = ".dvc"  # beside a file that `dvc add` versioned
DIRECTORY = ".dir"  # DVC's suffix of the md5 of a folder, whose object lists the files as JSON


def repair_task(task: str) -> int:
    """Remove altered copies of the task's files from the cache and the checkout, and say which; returns the exit code."""
    root = find_root(Path.cwd())
    params = check_checkout(root, task)
    outputs = locked_outputs(read_lock(root / LOCK_FILE), task)
    source = versioned_source(root, params)
    if source is not None:
        outputs[source] = pointed_md5(root, source)
    cache = cache_folder(root)
    objects = dict(_objects(cache, outputs))
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
    if source is not None:
        _advise(root, task, source, cache)
    return 0


def versioned_source(root: Path, params: TaskParams) -> str | None:
    """The path of the task's source, from the root, where it is a file that `dvc add` versioned; else None."""
    source = params.ingest.source
    if isinstance(source, FileSource) and "://" not in source.path and (root / f"{source.path}{POINTER_SUFFIX}").is_file():
        return source.path
    return None


def pointed_md5(root: Path, path: str) -> str:
    """DVC's md5 of a file that `dvc add` versioned; raises WorkspaceError when what lies beside it does not say it."""
    pointer = root / f"{path}{POINTER_SUFFIX}"
    document: Any = read_yaml(pointer)
    try:
        return str(document["outs"][0]["md5"])
    except (KeyError, IndexError, TypeError):
        raise WorkspaceError(f"{pointer} names no md5. Restore it from git, or add the file again with `promptmill data add`.") from None


def check_not_handed_out_altered(root: Path, task: str, path: str) -> None:
    """Raise WorkspaceError when a versioned file is not what was added but what an altered object of DVC's cache holds."""
    md5, found = pointed_md5(root, path), md5_file(root / path) if (root / path).is_file() else None
    object_path = cached_object(cache_folder(root), md5)
    if found not in (None, md5) and object_path.is_file() and md5_file(object_path) == found:
        raise WorkspaceError(
            f"{path} is a copy of {object_path}, which was altered: its md5 is {found}, added was {md5}. Run `promptmill data repair {task}`."
        )


def _advise(root: Path, task: str, path: str, cache: Path) -> None:
    """Say how a versioned source file that is gone or is not what was added comes back; it may hold a change that is meant, so it is left."""
    md5 = pointed_md5(root, path)
    if (root / path).is_file() and md5_file(root / path) == md5:
        if not cached_object(cache, md5).is_file():
            answer(f"{path} itself is intact; `dvc add {path}` puts it into the cache again.")
        return
    if cached_object(cache, md5).is_file():
        back = f"`dvc checkout {path}{POINTER_SUFFIX}`"
    else:
        back = f"`dvc pull {path}{POINTER_SUFFIX}` where a remote holds it, else `promptmill data add {task} FILE` with the original"
    back = f"delete it and run {back}"  # DVC takes a file whose time and size did not change for unchanged
    answer(
        f"{path} is not the file that was added. To have that back, {back}. If the change is meant, run `promptmill data refresh {task}`."
    )


def cache_folder(root: Path) -> Path:
    """The folder of the cache's objects; raises WorkspaceError when DVC does not say where its cache is."""
    done = run_dvc(root, "cache", "dir")
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
