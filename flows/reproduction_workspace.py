"""A workspace of its own for a reproduction: a clone at the recorded commit, with the recorded diff, lock and data, and nothing else."""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.clones import clone_at, clone_folder, git, link_outside, outside_paths
from flows.dvc_cache import DIRECTORY, cache_folder, cached_object, md5_file
from flows.dvc_command import run_dvc
from flows.dvc_state import LOCK_FILE
from flows.process_group import process_group
from flows.settings import last_line, log_file
from flows.workspace import write_lock
from pipeline.errors import WorkspaceError
from pipeline.records import replacing_file

# What the two stages that are run again must not be given: they make it.
MADE_AGAIN = ("tune", "score")


class NotTheSame(WorkspaceError):
    """Something in the workspace is not what was recorded; the message says what."""


@dataclass(frozen=True)
class Clone:
    """The workspace of one reproduction of `task`, below `base`, made from the checkout `root`."""

    root: Path
    base: Path
    folder: Path
    task: str
    threads: int

    def run(self, arguments: Sequence[str], name: str, *, stdin: str = "", code: Path | None = None) -> str:
        """Run `python ARGUMENTS` in the clone, with the clone's code or that below `code`; returns stdout.

        Raises NotTheSame with the last line of its log when it fails.
        """
        log = log_file(self.root, self.task, f"reproduce-{name}")
        answer = self.base / f"{name}.out"
        question = self.base / f"{name}.in"
        question.write_text(stdin, encoding="utf-8")
        command = ["sh", "-c", 'exec "$0" "$@" < "$PROMPTMILL_QUESTION"', sys.executable, "-P", *arguments]
        environment = {**self.environment(), "PYTHONPATH": str(code or self.folder), "PROMPTMILL_QUESTION": str(question)}
        with (
            log.open("wb") as errors,
            answer.open("wb") as output,
            process_group(command, folder=self.folder, environment=environment, stdout=output, stderr=errors) as process,
        ):
            status = process.wait()
        if status != 0:
            raise NotTheSame(f"`python {' '.join(arguments)}` ended with exit code {status}: {last_line(log)}")
        return answer.read_text(encoding="utf-8")

    def environment(self) -> dict[str, str]:
        """This process's environment, with as many threads as were recorded."""
        return {**os.environ, "OMP_NUM_THREADS": str(self.threads)}


def make_clone(
    *, root: Path, base: Path, task: str, commit: str, diff: bytes, manifest: Mapping[str, Any], asked: Mapping[str, Any]
) -> Clone:
    """Clone the checkout at `commit` into a folder below `base` and apply `diff`.

    Relative paths that params name (a base model's folder) lead to the same files as in the checkout, through links. Raises NotTheSame when
    git does not know the commit or the diff does not apply.
    """
    paths = outside_paths(manifest["base_model"]["source"], asked["tune"])
    folder = clone_folder(base, paths)
    clone_at(root, folder, commit, error=NotTheSame)
    if diff:
        patch = base / "code.diff"
        patch.write_bytes(diff)
        git(folder, "apply", "--binary", str(patch), doing="applying the recorded diff of uncommitted changes", error=NotTheSame)
    link_outside(root, folder, paths)
    return Clone(root, base, folder, task, int(manifest["hardware"].get("threads") or 1))


def check_code(clone: Clone, entries: Mapping[str, Any]) -> int:
    """Compare each code file that the two stages depended on with what dvc.lock recorded; returns how many, raises NotTheSame."""
    outputs = {out["path"] for entry in entries.values() for out in entry.get("outs", ())}
    deps = {dep["path"]: dep["md5"] for name in MADE_AGAIN for dep in entries[f"{name}@{clone.task}"]["deps"] if dep["path"] not in outputs}
    files = {path: md5 for path, md5 in deps.items() if not md5.endswith(DIRECTORY)}
    for path, md5 in files.items():
        found = md5_file(clone.folder / path) if (clone.folder / path).is_file() else "absent"
        if found != md5:
            raise NotTheSame(f"{path} at the recorded commit is not the file that was run: its md5 is {found}, dvc.lock recorded {md5}.")
    return len(files)


def bring_data(clone: Clone, entries: Mapping[str, Any], lock: Mapping[str, Any]) -> list[str]:
    """Put every file that the two stages read, and earlier ones wrote, into the clone: from DVC's cache, or by `dvc pull`; returns their paths.

    Raises NotTheSame naming the file that is nowhere, or has other bytes than dvc.lock recorded.
    """
    own = {out["path"] for name in MADE_AGAIN for out in entries[f"{name}@{clone.task}"]["outs"]}
    made = {out["path"] for entry in entries.values() for out in entry.get("outs", ())} - own
    wanted = {dep["path"]: dep["md5"] for name in MADE_AGAIN for dep in entries[f"{name}@{clone.task}"]["deps"] if dep["path"] in made}
    cache = cache_folder(clone.root)
    missing = [path for path, md5 in wanted.items() if not cached_object(cache, md5).is_file()]
    if missing:
        _pull(clone, lock, missing)
    for path, md5 in wanted.items():
        if path not in missing:
            for source, target, expected in _objects(cache, path, md5):
                _copy(source, clone.folder / target, expected, target)
    return sorted(wanted)


def recorded_output(clone: Clone, entries: Mapping[str, Any], path: str, target: Path) -> Path:
    """What the recorded run wrote at `path`, from DVC's cache, as `target`; raises NotTheSame when it is gone or altered."""
    outs = {out["path"]: out["md5"] for entry in entries.values() for out in entry.get("outs", ())}
    _copy(cached_object(cache_folder(clone.root), outs[path]), target, outs[path], path)
    return target


def _objects(cache: Path, path: str, md5: str) -> Iterator[tuple[Path, str, str]]:
    """(object in the cache, path in the workspace, md5) of a file, or of every file of a folder."""
    if not md5.endswith(DIRECTORY):
        yield cached_object(cache, md5), path, md5
        return
    listing = cached_object(cache, md5).read_bytes()
    if hashlib.md5(listing, usedforsecurity=False).hexdigest() != md5.removesuffix(DIRECTORY):
        raise NotTheSame(
            f"DVC's list of the files in {path} was altered in the cache. `promptmill data repair` removes it; then fetch it again."
        )
    for entry in json.loads(listing):
        yield cached_object(cache, entry["md5"]), f"{path}/{entry['relpath']}", entry["md5"]


def _copy(source: Path, target: Path, md5: str, name: str) -> None:
    if not source.is_file():
        raise NotTheSame(
            f"{name} is not in DVC's cache any more: {source} does not exist. Fetch it from a remote: `dvc fetch --all-commits`."
        )
    with replacing_file(target) as temporary:
        shutil.copyfile(source, temporary)
        found = md5_file(temporary)
        if found != md5:
            raise NotTheSame(
                f"{name} has other bytes than the run read: its md5 is {found}, dvc.lock recorded {md5}. Its copy in DVC's cache was altered."
            )


def _pull(clone: Clone, lock: Mapping[str, Any], paths: Sequence[str]) -> None:
    write_lock(clone.folder / LOCK_FILE, lock)
    local = clone.root / ".dvc" / "config.local"
    if local.is_file():
        shutil.copyfile(local, clone.folder / ".dvc" / "config.local")
    done = run_dvc(clone.folder, "pull", *paths)
    if done.returncode != 0:
        raise NotTheSame(
            f"{paths[0]} is not in DVC's cache, and `dvc pull` did not bring it: {' '.join(done.stderr.split())[-300:]} Add the DVC remote that holds it."
        )
