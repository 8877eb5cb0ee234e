"""`promptmill data log`: a task's data versions, what was made from each, and the difference between two.

A data version is a raw table with its three splits. Versions are known from the runs in MLflow, from every dvc.lock that git holds,
and from the checkout.
"""

import json
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from flows.data_changes import changes_text, compare_versions
from flows.dvc_cache import cache_folder, cached_object, fetch
from flows.terminal import answer, number, table
from flows.workspace import LOCK_FILE, check_checkout
from pipeline.data.comparison import RawTable
from pipeline.errors import StageInputError, WorkspaceError
from pipeline.layout import FILES, Layout, find_root
from pipeline.records import read_json, sha256_file, verify_parquet
from pipeline.registry.data_identity import SPLITS, data_tags
from pipeline.registry.data_versions import RecordedData, data_of_version, recorded_data
from pipeline.registry.tracking import locked_outputs, read_lock

HERE = "here"
SHORT, SHORTEST = 8, 4  # hex digits: shown, and taken as a name
HEADER = ("data", "splits", "first run", "rows", "accepted", "train/validation/test", "contract", "runs", "prompts", "git commit", "")

Key = tuple[str, ...]  # DVC's md5 of the raw table and of the three splits


@dataclass
class DataVersion:
    """One data version: its data tags as far as known (at least `raw_md5`), and what was made from it."""

    tags: dict[str, str]
    runs: list[RecordedData] = field(default_factory=list)
    commit: str | None = None
    here: bool = False

    def record(self) -> dict[str, Any]:
        """For JSON."""
        versions = {number: aliases for run in self.runs for number, aliases in run.versions.items()}
        return {
            **self.tags,
            "first_recorded_at": self.runs[0].recorded_at if self.runs else None,
            "runs": [run.run_id for run in self.runs],
            "prompt_versions": [{"version": number, "aliases": aliases} for number, aliases in sorted(versions.items())],
            "git_commit": self.commit,
            "here": self.here,
        }


def log(task: str, *, as_json: bool) -> int:
    """Print the data versions of the task, newest last; returns the exit code."""
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
    """Every data version that MLflow, git or the checkout knows: those without a run first, then in the order of their first runs."""
    found: dict[Key, DataVersion] = {}
    for run in recorded_data(root=root, task=task):
        found.setdefault(_key(run.tags), DataVersion(dict(run.tags))).runs.append(run)
    for commit, lock in _locks(root):
        _note_commit(root, task, commit, lock, found)
    _note_checkout(root, task, found)
    return sorted(found.values(), key=lambda version: version.runs[0].recorded_at if version.runs else "")


# --- where versions are known from ------------------------------------------------------------------------------------


def _key(tags: Mapping[str, str]) -> Key:
    return tuple(tags.get(f"{name}_md5", "") for name in ("raw", *SPLITS))


def _locks(root: Path) -> Iterator[tuple[str, str]]:
    """(commit, text of dvc.lock) of every commit of any branch that changed it, newest first."""
    commits = _git(root, "log", "--all", "--format=%H", "--", LOCK_FILE).split()
    for commit in commits:
        text = _git(root, "show", f"{commit}:./{LOCK_FILE}")
        if text:  # empty where the commit removed the file
            yield commit, text


def _note_commit(root: Path, task: str, commit: str, lock: str, found: dict[Key, DataVersion]) -> None:
    """Add what a commit's dvc.lock says of the task to the version it belongs to, unless a newer commit did."""
    stages: Any = (YAML(typ="base").load(lock) or {}).get("stages", {})
    outputs = locked_outputs(stages, task)
    tags = {f"{name}_md5": outputs[path] for name in ("raw", *SPLITS) if (path := FILES[name].format(task=task)) in outputs}
    if "raw_md5" not in tags:
        return
    version = found.setdefault(_key(tags), DataVersion({**tags, **_cached_report(root, task, outputs)}))
    version.commit = version.commit or commit


def _cached_report(root: Path, task: str, outputs: Mapping[str, str]) -> dict[str, str]:
    """What the cached ingest report of a version without a run tells of it; nothing where the cache lacks it."""
    md5 = outputs.get(FILES["ingest_report"].format(task=task))
    path = cached_object(cache_folder(root), md5) if md5 else None
    if path is None or not path.is_file():
        return {}
    try:
        report = read_json(path)
    except StageInputError:
        return {}
    known = {"raw_sha256": "raw_sha256", "rows": "raw_rows", "source": "source", "source_sha256": "source_sha256"}
    return {tag: str(report[name]) for name, tag in known.items() if name in report}


def _note_checkout(root: Path, task: str, found: dict[Key, DataVersion]) -> None:
    """Mark the version that dvc.lock speaks of; without a run its tags come from the stages' reports as far as these are there."""
    try:
        outputs = locked_outputs(read_lock(root / LOCK_FILE), task)
    except StageInputError:
        return
    tags = {f"{name}_md5": outputs.get(FILES[name].format(task=task), "") for name in ("raw", *SPLITS)}
    if not tags["raw_md5"]:
        return
    version = found.setdefault(_key(tags), DataVersion({**tags, **_cached_report(root, task, outputs)}))
    version.here = True
    if not version.runs:
        try:
            version.tags |= {name.rpartition(".")[2]: value for name, value in data_tags(Layout(root, task), outputs).items()}
        except StageInputError:
            return  # split has not run on it yet, or an output is not there: what ingest said is what is known


# --- naming and showing -----------------------------------------------------------------------------------------------


def _table(root: Path, task: str, name: str, known: list[DataVersion]) -> RawTable:
    """The raw table of a version named by the beginning of its sha256 or md5, `@N` or `@alias` of a prompt version, or `here`."""
    if name == HERE:
        raw = Layout(root, task).path("raw")
        return RawTable(raw, verify_parquet(raw))
    tags = data_of_version(root=root, task=task, selector=name[1:]) if name.startswith("@") else _named(task, name, known)
    path = fetch(root, tags["raw_md5"])
    expected = tags.get("raw_sha256")
    found = sha256_file(path)
    if expected is None or found != expected:
        problem = "no run and no ingest report tell its sha256" if expected is None else f"its sha256 is {found}, recorded was {expected}"
        raise WorkspaceError(
            f"The raw table of data version {name} ({path}) cannot be trusted: {problem}. Run `promptmill data repair {task}`, or delete that file, and `dvc pull` it."
        )
    return RawTable(path, expected)


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
        *(_short(tags), tags.get("split_ids_sha256", "-")[:SHORT], number(record["first_recorded_at"])),
        *(tags.get("raw_rows", "-"), tags.get("accepted_rows", "-"), splits, tags.get("contract", "-")),
        *(str(len(version.runs)), "; ".join(prompts) or "-", (version.commit or "-")[:SHORT], HERE if version.here else ""),
    )


def _git(root: Path, *arguments: str) -> str:
    """What a git command prints; nothing when it fails, as in a repository without a commit."""
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, errors="replace", check=False)
    return done.stdout if done.returncode == 0 else ""
