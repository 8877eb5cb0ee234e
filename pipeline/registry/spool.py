"""The spool: records of finished runs that MLflow did not take because it did not answer, kept whole until it does.

A spooled record is a folder `.promptmill/spool/<task>/<stage key>` with everything the run will hold: `record.json`, which has the sha256 of
each file, and the files. It appears in one rename. Delivery goes through the same door as any recording, which finds a finished run of the
same stage key again, so a record is delivered once however often and by however many processes that is tried.
"""

import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.errors import RegistryError
from pipeline.layout import Layout
from pipeline.params import TaskParams
from pipeline.records import read_json, replacing_folder, sha256_file, sha256_json, write_json
from pipeline.registry.connection import STATE_FOLDER, file_lock
from pipeline.registry.tracking import Content, RecordedRun, lock_entries, locked_outputs, read_content, record_content, stage_key

FOLDER, RECORD_FILE, FILES_FOLDER, DIFF_FILE = "spool", "record.json", "files", "code.diff"


def spool_run(*, root: Path, task: str, params: TaskParams, layout: Layout, lock: Path) -> Path:
    """Keep what `tracking.record_run` would record, and return its folder; a run that is there already is kept as it is."""
    entries = lock_entries(lock=lock, task=task)
    key = stage_key(entries=entries)
    folder = _spool(root) / task / key
    if folder.is_dir():
        return folder
    content = read_content(root, params, layout, lock, locked_outputs(entries, task))
    with replacing_folder(folder) as temporary:
        files: list[dict[str, Any]] = []
        for number, (path, place) in enumerate(content.files):
            copy = temporary / FILES_FOLDER / str(number) / path.name
            copy.parent.mkdir(parents=True)
            shutil.copytree(path, copy) if path.is_dir() else shutil.copyfile(path, copy)
            files.append({"path": copy.relative_to(temporary).as_posix(), "folder": place, "sha256": _sha256(copy)})
        (temporary / DIFF_FILE).write_bytes(content.diff)
        record = {
            "task": task,
            "stage_key": key,
            "spooled_at": datetime.now(UTC).isoformat(timespec="microseconds"),
            "tags": content.tags,
            "params": content.params,
            "figures": content.figures,
            "curve": content.curve,
            "splits": dict(content.splits),
            "files": files,
            "diff_sha256": sha256_file(temporary / DIFF_FILE),
        }
        write_json(temporary / RECORD_FILE, record)
    return folder


def spooled(*, root: Path, task: str | None = None) -> list[Path]:
    """The folders of the spooled records, of one task or of all, oldest first."""
    found = list(_spool(root).glob(f"{task or '*'}/*/{RECORD_FILE}"))
    return [path.parent for path in sorted(found, key=lambda path: read_json(path)["spooled_at"])]


@contextmanager
def emptying(*, root: Path) -> Generator[None]:
    """Hold the spool: one process would remove a record while another reads its files. Raises RegistryError after a long wait."""
    with file_lock(_spool(root).with_suffix(".lock")):
        yield


def deliver(*, root: Path, folder: Path) -> RecordedRun:
    """Record a spooled run and remove it from the spool; a run that was delivered before is found again.

    Raises RegistryUnreachable while the server does not answer, RegistryError when it refuses or a spooled file was altered.
    """
    record = read_json(folder / RECORD_FILE)
    recorded = record_content(root=root, task=record["task"], key=record["stage_key"], content=_content(folder, record))
    shutil.rmtree(folder, ignore_errors=True)  # two deliveries at once both come here
    return recorded


def _content(folder: Path, record: Mapping[str, Any]) -> Content:
    for entry in [*record["files"], {"path": DIFF_FILE, "sha256": record["diff_sha256"]}]:
        path = folder / entry["path"]
        found = _sha256(path) if path.exists() else "absent"
        if found != entry["sha256"]:
            raise RegistryError(
                f"{path} was altered in the spool: its sha256 is {found}, spooled was {entry['sha256']}. Restore it, or remove {folder} to give "
                "that record up; `promptmill run` records what the checkout holds now."
            )
    return Content(
        tags=dict(record["tags"]),
        params=dict(record["params"]),
        figures=dict(record["figures"]),
        curve=[(str(name), float(value), int(step)) for name, value, step in record["curve"]],
        splits=record["splits"],
        files=[(folder / entry["path"], entry["folder"]) for entry in record["files"]],
        diff=(folder / DIFF_FILE).read_bytes(),
    )


def _sha256(path: Path) -> str:
    """Of a file, or of the names and hashes of all files of a folder."""
    if path.is_file():
        return sha256_file(path)
    lines = [f"{file.relative_to(path).as_posix()} {sha256_file(file)}" for file in sorted(path.rglob("*")) if file.is_file()]
    return sha256_json(lines)


def _spool(root: Path) -> Path:
    return root / STATE_FOLDER / FOLDER
