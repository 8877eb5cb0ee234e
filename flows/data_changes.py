"""`promptmill data add` and `promptmill data refresh`: new rows for a task, versioned, and what they change."""

import shutil
import sys
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flows.dvc_cache import check_not_handed_out_altered, versioned_source
from flows.dvc_command import run_dvc
from flows.dvc_state import LOCK_FILE
from flows.events import DATA_CHANGED, announce
from flows.settings import state_folder
from flows.stage_process import run_stage
from flows.terminal import answer, say, table
from flows.workspace import check_checkout
from pipeline.data.comparison import RawTable, compare_tables
from pipeline.errors import SourceError, StageInputError, WorkspaceError
from pipeline.layout import PARAMS_FILE, Layout, find_root, stage_named
from pipeline.params import FileSource, TaskParams
from pipeline.params_file import read_yaml, replace_source
from pipeline.records import checksum_file, read_json, replacing_file, sha256_file, verify_parquet

INGEST = "ingest"
SOURCES = "data/sources"
PERCENT = 100


def add_file(task: str, file: Path, *, encoding: str | None = None, delimiter: str | None = None) -> int:
    """Make `file` the source of the task, once it was read as such, version both, and say what changed; returns the exit code.

    Raises SourceError when it cannot be read as the task's columns say, ParamsError when params.yaml cannot name it; nothing is changed then.
    """
    root = find_root(Path.cwd())
    params = check_checkout(root, task)
    if not file.is_file():
        raise SourceError(f"{file} is no file. Name the file that holds the rows.")
    path = f"{SOURCES}/{task}/{file.name}"
    source = {"kind": "file", "path": path, **{k: v for k, v in (("encoding", encoding), ("delimiter", delimiter)) if v is not None}}
    text = _params_text(root, task, params, source)
    with _scratch(root) as folder:
        _try_to_read(folder, task, file, text)
        former = _former_raw(root, task, folder)
        with replacing_file(root / path) as copy:
            shutil.copyfile(file, copy)
        _write_checksum(root / path)
        dvc_add(root, path)
        with replacing_file(root / PARAMS_FILE) as temporary:
            temporary.write_text(text, encoding="utf-8")
        run_stage(root=root, task=task, stage=INGEST, screen=sys.stderr.buffer, force=True)
        if _say_changes(root, task, former, check_checkout(root, task)):
            _announce(root, task, former)
    answer(f"To keep this version: git add {LOCK_FILE} {PARAMS_FILE} {SOURCES} && git commit. `promptmill run {task}` tunes on it.")
    return 0


def refresh(task: str) -> int:
    """Read the task's source again, version what it holds now, and say what changed; returns the exit code."""
    root = find_root(Path.cwd())
    params = check_checkout(root, task)
    with _scratch(root) as folder:
        former = _former_raw(root, task, folder)
        say(f"Reading the source of {task} again ...")
        with _accepted(root, task, params):
            run_stage(root=root, task=task, stage=INGEST, screen=sys.stderr.buffer, force=True)
        changed = _say_changes(root, task, former, params)
    if changed:
        _announce(root, task, former)
        answer(f"To keep this version: git add {LOCK_FILE} && git commit. `promptmill run {task}` tunes on it.")
    return 0


def changes_text(changes: Mapping[str, Any]) -> str:
    """The report of `compare_tables` for a terminal."""
    lines = [
        f"rows {changes['rows_before']} -> {changes['rows_after']}: {changes['added']} added, {changes['removed']} removed, {changes['relabelled']} relabelled"
    ]
    if changes.get("labels"):
        rows = {label: (found["before"], found["after"]) for label, found in changes["labels"].items()}
        totals = [max(1, sum(found[side] for found in rows.values())) for side in (0, 1)]
        shares = {label: [PERCENT * found[side] / totals[side] for side in (0, 1)] for label, found in rows.items()}
        cells = [
            (
                label,
                str(before),
                str(after),
                f"{shares[label][0]:.1f} %",
                f"{shares[label][1]:.1f} %",
                f"{shares[label][1] - shares[label][0]:+.1f}",
            )
            for label, (before, after) in rows.items()
        ]
        lines.append(table(("label", "before", "after", "share before", "share after", "points"), cells))
        lines.append(f"label shift (total variation distance, 0 to 1): {changes['total_variation_distance']:.4f}")
    return "\n".join(lines)


def compare_versions(before: RawTable, after: RawTable, params: TaskParams) -> dict[str, Any]:
    """`compare_tables` with the task's fields and answer."""
    columns = params.ingest.columns
    return compare_tables(before, after, fields=list(columns.fields), target=columns.answer, labels=columns.answer == "label")


def dvc_add(root: Path, path: str) -> None:
    """Version a file with DVC; raises WorkspaceError with DVC's words when it does not take it."""
    done = run_dvc(root, "add", "--quiet", path)
    if done.returncode != 0:
        raise WorkspaceError(
            f"`dvc add {path}` failed in {root}: {' '.join(done.stderr.split())} Should git ignore the folder, let .gitignore hold `/data/*` and `!/{SOURCES}/`."
        )


@contextmanager
def _accepted(root: Path, task: str, params: TaskParams) -> Generator[None]:
    """Take a versioned source file as it lies there for what was meant, and version it, unless the block fails.

    Raises WorkspaceError when it is what an altered object of DVC's cache holds, which nobody meant.
    """
    path = versioned_source(root, params)
    if path is None:
        yield
        return
    check_not_handed_out_altered(root, task, path)
    checksum = checksum_file(root / path)
    before = checksum.read_bytes() if checksum.is_file() else None
    if (root / path).is_file():
        _write_checksum(root / path)
    try:
        yield
    except BaseException:
        checksum.unlink(missing_ok=True) if before is None else checksum.write_bytes(before)
        raise
    dvc_add(root, path)


def _write_checksum(path: Path) -> None:
    """The sha256 of a source file beside it: git holds it, and every read of the file is compared with it."""
    with replacing_file(checksum_file(path)) as temporary:
        temporary.write_text(f"{sha256_file(path)}  {path.name}\n", encoding="utf-8")


def _params_text(root: Path, task: str, params: TaskParams, source: Mapping[str, str]) -> str:
    """params.yaml with this source; what an earlier file of the same format was given (encoding, delimiter) is kept."""
    path = root / PARAMS_FILE
    text = path.read_text(encoding="utf-8")
    present: Any = read_yaml(path)["tasks"][task]["ingest"].get("source", {})
    alike = isinstance(params.ingest.source, FileSource) and Path(present.get("path", "")).suffix == Path(source["path"]).suffix
    new = {**(present if alike else {}), **source}
    return text if present == new else replace_source(text, task, new)


def _try_to_read(folder: Path, task: str, file: Path, text: str) -> None:
    """Run ingest with the new params on `file` into a folder of its own, so that a file that cannot be read changes nothing."""
    from pipeline.params import load_task
    from pipeline.stages import ingest

    trial = folder / PARAMS_FILE
    trial.write_text(text, encoding="utf-8")
    params = load_task(trial, task)
    source = params.ingest.source.model_copy(update={"path": str(file.resolve())})
    params = params.model_copy(update={"ingest": params.ingest.model_copy(update={"source": source})})
    layout, stage = Layout(folder, task), stage_named(INGEST)
    say(f"Reading {file} ...")
    ingest.run(params=params, inputs=layout.inputs(stage), outputs=layout.outputs(stage))


def _former_raw(root: Path, task: str, folder: Path) -> RawTable | None:
    """A copy of the raw table as it is before it is replaced, or as DVC's cache has it; None when there is none that is intact."""
    raw, copy = Layout(root, task).path("raw"), folder / "former.parquet"
    if not raw.exists():  # DVC removes it before ingest runs, so it is gone after a run that failed, and in a new clone
        run_dvc(root, "checkout", "--quiet", str(raw), str(checksum_file(raw)))
    try:
        sha256 = verify_parquet(raw)
    except StageInputError as error:
        if raw.exists() or checksum_file(raw).exists():
            say(f"There is nothing to compare with: {error}")
        return None
    shutil.copyfile(raw, copy)
    return RawTable(copy, sha256)


def _say_changes(root: Path, task: str, former: RawTable | None, params: TaskParams) -> bool:
    """Print what changed; returns whether anything did."""
    raw = Layout(root, task).path("raw")
    sha256 = verify_parquet(raw)
    if former is None:
        answer(f"{task}: first data version {sha256[:8]}, {read_json(Layout(root, task).path('ingest_report'))['rows']} rows.")
        return True
    if former.sha256 == sha256:
        answer(f"{task}: nothing changed, the data version is still {sha256[:8]}.")
        return False
    answer(f"{task}: data version {sha256[:8]} (before: {str(former.sha256)[:8]})")
    try:
        answer(changes_text(compare_versions(former, RawTable(raw), params)))
    except StageInputError as error:
        answer(f"The two cannot be compared: {error}")
    return True


def _announce(root: Path, task: str, former: RawTable | None) -> None:
    """Tell the Prefect server, where one is named, that there is new data: a deployment of `retrain` may wait for it."""
    now, before = verify_parquet(Layout(root, task).path("raw")), None if former is None else str(former.sha256)
    lines = [f"Data version {now[:8]} (before: {'none' if before is None else before[:8]})."]
    if announce(DATA_CHANGED, task, subject=f"{task}: new data", lines=lines, details={"before": before, "after": now}):
        say(f"Prefect was told of it ({DATA_CHANGED}).")


@contextmanager
def _scratch(root: Path) -> Generator[Path]:
    """A folder below the workspace's state folder, removed at the end."""
    parent = state_folder(root)
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="data-", dir=parent) as folder:
        yield Path(folder)
