"""`promptmill data log`: a task's data versions, what was made from each, and the difference between two.

A data version is a raw table with its three splits. Versions are known from the runs in MLflow, from every dvc.lock that git holds,
and from the checkout.
"""

import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from flows.data_changes import changes_text, compare_versions
from flows.dvc_cache import cache_folder, cached, cached_object
from flows.dvc_state import LOCK_FILE
from flows.terminal import answer, table
from flows.workspace import check_checkout
from pipeline.data.comparison import RawTable
from pipeline.errors import StageInputError, WorkspaceError
from pipeline.layout import FILES, STAGES, Layout, find_root
from pipeline.records import read_json, sha256_file, verify_parquet
from pipeline.registry.data_identity import SPLITS, data_of, data_tags
from pipeline.registry.data_versions import RecordedData, data_of_version, recorded_data
from pipeline.registry.tracking import locked_outputs, read_lock

DATA_STAGES = ("ingest", "validate", "split")
HERE = "here"
SHORT, SHORTEST = 8, 4  # hex digits: shown, and taken as a name
HEADER = ("data", "splits", "since", "rows", "accepted", "train/validation/test", "contract", "runs", "prompts", "git commit", "")

Key = tuple[str, ...]  # DVC's md5 of the raw table and of the three splits


@dataclass
class DataVersion:
    """One data version: its data tags as far as known (at least `raw_md5`), and what was made from it.

    `since` is when a run or a commit first had it, `commit` the newest whose dvc.lock lists it, `here` whether the checkout does.
    """

    tags: dict[str, str]
    since: datetime | None = None
    runs: list[RecordedData] = field(default_factory=list)
    commit: str | None = None
    here: bool = False

    def record(self) -> dict[str, Any]:
        """For JSON."""
        versions = {number: aliases for run in self.runs for number, aliases in run.versions.items()}
        return {
            **self.tags,
            "since": self.since.astimezone(UTC).isoformat(timespec="seconds") if self.since else None,
            "runs": [run.run_id for run in self.runs],
            "prompt_versions": [{"version": number, "aliases": aliases} for number, aliases in sorted(versions.items())],
            "git_commit": self.commit,
            "here": self.here,
        }


def log(task: str, *, as_json: bool) -> int:
    """Print the data versions of the task, the one that is known longest first; returns the exit code."""
    root = find_root(Path.cwd())
    check_checkout(root, task)
    versions = data_versions(root, task)
    if as_json:
        answer(json.dumps([version.record() for version in versions], ensure_ascii=False, indent=2))
    elif versions:
        answer(table(HEADER, [_cells(version) for version in versions]))
    else:
        answer(f"{task} has no data version yet. `promptmill run {task}` makes the first.")
    return 0


def diff(task: str, before: str, after: str, *, as_json: bool) -> int:
    """Print what changed between two data versions; returns the exit code. Raises WorkspaceError when one is unknown or gone."""
    root = find_root(Path.cwd())
    params = check_checkout(root, task)
    known = data_versions(root, task)
    changes = compare_versions(_table(root, task, before, known), _table(root, task, after, known), params)
    answer(json.dumps(changes, ensure_ascii=False, indent=2) if as_json else changes_text(changes))
    return 0


def data_versions(root: Path, task: str) -> list[DataVersion]:
    """Every data version that MLflow, git or the checkout knows, in the order in which they became known."""
    found: dict[Key, DataVersion] = {}
    cache = cache_folder(root)
    for run in recorded_data(root=root, task=task):
        version = found.setdefault(_key(run.tags), DataVersion(dict(run.tags)))
        version.runs.append(run)
        version.since = version.since or datetime.fromisoformat(run.recorded_at)
    for commit, when, lock in _locks(root):
        version = _version_of_lock(cache, task, _data_entries(lock, task), found)
        if version is not None:
            version.commit = version.commit or commit
            version.since = min(when, version.since or when)
    _note_checkout(root, cache, task, found)
    split = {key[0] for key in found if key[1]}
    listed = [version for key, version in found.items() if key[1] or version.here or key[0] not in split]
    return sorted(listed, key=lambda version: version.since or datetime.max.replace(tzinfo=UTC))


# --- where versions are known from ------------------------------------------------------------------------------------


def _key(tags: Mapping[str, str]) -> Key:
    return tuple(tags.get(f"{name}_md5", "") for name in ("raw", *SPLITS))


def _locks(root: Path) -> Iterator[tuple[str, datetime, str]]:
    """(commit, its time, text of dvc.lock) of every commit of any branch that changed it, newest first."""
    for line in _git(root, "log", "--all", "--format=%H %cI", "--", LOCK_FILE).splitlines():
        commit, when = line.split()
        text = _git(root, "show", f"{commit}:./{LOCK_FILE}")
        if text:  # empty where the commit removed the file
            yield commit, datetime.fromisoformat(when), text


def _data_entries(lock: str, task: str) -> dict[str, Any]:
    """The entries of the task's data stages, cut out of the text of a dvc.lock as DVC lays it out.

    Parsing all of it takes 0.3 s for two tasks, and a task that is retrained every night has hundreds of them.
    """
    blocks = re.split(r"^(?=  \S)", lock, flags=re.MULTILINE)
    names = tuple(f"  {stage}@{task}:" for stage in DATA_STAGES)
    return YAML(typ="base").load("".join(block for block in blocks if block.startswith(names))) or {}


def _version_of_lock(cache: Path, task: str, entries: Mapping[str, Any], found: dict[Key, DataVersion]) -> DataVersion | None:
    """The version that the entries of a dvc.lock speak of, among `found` from now on; None when the task's ingest is not in it."""
    outputs = _current_outputs(entries, task)
    tags = {f"{name}_md5": outputs[path] for name in ("raw", *SPLITS) if (path := FILES[name].format(task=task)) in outputs}
    if "raw_md5" not in tags:
        return None
    if _key(tags) not in found:
        found[_key(tags)] = DataVersion({**tags, **_cached_report(cache, task, outputs)})
    return found[_key(tags)]


def _current_outputs(entries: Mapping[str, Any], task: str) -> dict[str, str]:
    """The outputs that belong together: those of a stage that last ran on other inputs than dvc.lock now lists are left out."""
    listed = locked_outputs(entries, task)
    current: dict[str, str] = {}
    for stage in STAGES:
        name = f"{stage.name}@{task}"
        read = {dep["path"]: dep.get("md5") for dep in entries.get(name, {}).get("deps", ())}
        if all(current.get(path) == md5 for path, md5 in read.items() if path in listed):
            current |= locked_outputs({name: entries.get(name, {})}, task)
    return current


def _cached_report(cache: Path, task: str, outputs: Mapping[str, str]) -> dict[str, str]:
    """What the cached ingest report of a version without a run tells of it; nothing where the cache lacks it."""
    md5 = outputs.get(FILES["ingest_report"].format(task=task))
    path = cached_object(cache, md5) if md5 else None
    if path is None or not path.is_file():
        return {}
    try:
        report = read_json(path)
    except StageInputError:
        return {}
    known = {"raw_sha256": "raw_sha256", "rows": "raw_rows", "source": "source", "source_sha256": "source_sha256"}
    return {tag: str(report[name]) for name, tag in known.items() if name in report}


def _note_checkout(root: Path, cache: Path, task: str, found: dict[Key, DataVersion]) -> None:
    """Mark the version that the checkout's dvc.lock speaks of; without a run, the stages' reports tell more of it."""
    try:
        entries = read_lock(root / LOCK_FILE)
    except StageInputError:
        return
    version = _version_of_lock(cache, task, entries, found)
    if version is None:
        return
    version.here = True
    if not version.runs:
        try:
            version.tags |= data_of(data_tags(Layout(root, task), _current_outputs(entries, task)))
        except StageInputError:
            return  # split has not run on it yet, or an output is not there: what ingest said is what is known


# --- naming and showing -----------------------------------------------------------------------------------------------


def _table(root: Path, task: str, name: str, known: list[DataVersion]) -> RawTable:
    """The raw table of a version named by the beginning of its sha256 or md5, `@N` or `@alias` of a prompt version, or `here`."""
    if name == HERE:
        raw = Layout(root, task).path("raw")
        return RawTable(raw, verify_parquet(raw))
    tags = data_of_version(root=root, task=task, selector=name[1:]) if name.startswith("@") else _named(task, name, known)
    path = cached(root, tags["raw_md5"])
    expected, found = tags.get("raw_sha256"), sha256_file(path)
    if found != expected:
        recorded = "but nothing recorded says which it should be" if expected is None else f"recorded was {expected}: it was altered"
        raise WorkspaceError(
            f"{path}, the raw table of data version {name} of {task}, has sha256 {found}, {recorded}. Delete that file; "
            "`dvc fetch --all-commits` takes it from a DVC remote that holds it."
        )
    return RawTable(path, found)


def _named(task: str, name: str, known: list[DataVersion]) -> Mapping[str, str]:
    fits = {
        version.tags["raw_md5"]: version.tags
        for version in known
        if len(name) >= SHORTEST and any(version.tags.get(tag, "").startswith(name) for tag in ("raw_sha256", "raw_md5"))
    }
    if len(fits) != 1:
        listed = ", ".join(sorted({_short(version.tags) for version in known})) or "none"
        problem = "no" if not fits else f"{len(fits)} data versions that begin with"
        raise WorkspaceError(
            f"{task} has {problem if fits else 'no data version'} {name!r}; it has: {listed}. Give {SHORTEST} or more hex digits, @VERSION of a prompt, or `{HERE}`."
        )
    return next(iter(fits.values()))


def _short(tags: Mapping[str, str]) -> str:
    """How a version is shown: by our sha256, or DVC's md5 where only that is known."""
    return tags.get("raw_sha256", tags["raw_md5"])[:SHORT]


def _cells(version: DataVersion) -> tuple[str, ...]:
    record, tags = version.record(), version.tags
    prompts = [", ".join([str(made["version"]), *made["aliases"]]) for made in record["prompt_versions"]]
    splits = "/".join(tags.get(f"{name}_rows", "-") for name in SPLITS)
    return (
        *(
            _short(tags),
            tags.get("split_ids_sha256", "-")[:SHORT],
            f"{version.since.astimezone(UTC):%Y-%m-%d %H:%M}" if version.since else "-",
        ),
        *(tags.get("raw_rows", "-"), tags.get("accepted_rows", "-"), splits, tags.get("contract", "-")),
        *(str(len(version.runs)), "; ".join(prompts) or "-", (version.commit or "-")[:SHORT], HERE if version.here else ""),
    )


def _git(root: Path, *arguments: str) -> str:
    """What a git command prints; nothing when it fails, as in a repository without a commit."""
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, errors="replace", check=False)
    return done.stdout if done.returncode == 0 else ""
