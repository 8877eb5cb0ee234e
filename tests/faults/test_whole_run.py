"""One whole `promptmill run` under watch: what it unpickles, which addresses it listens on, and where secrets of the environment go."""

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.tiny_checkout import environment, make_checkout
from tests.stages.conftest import TASK

# Every process writes a line for each class that it unpickles and each address that it binds.
WATCH = """\
import json, os, sys
_file = os.open(os.environ["PROMPTMILL_TEST_EVENTS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

def _watch(event, arguments):
    if event == "pickle.find_class":
        command = " ".join(getattr(sys, "argv", []))
        os.write(_file, (json.dumps(["pickle", str(arguments[0]), str(arguments[1]), command]) + "\\n").encode())
    elif event == "socket.bind" and isinstance(arguments[1], tuple):
        os.write(_file, (json.dumps(["bind", str(arguments[1][0]), int(arguments[1][1])]) + "\\n").encode())

sys.addaudithook(_watch)
"""
CONTROL = """\
import collections, pickle, socket
pickle.loads(pickle.dumps(collections.Counter()))
socket.socket().bind(("0.0.0.0", 0))
"""
SECRETS = (
    *(
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AZURE_STORAGE_KEY",
        "GOOGLE_API_KEY",
        "HF_TOKEN",
        "HUGGING_FACE_HUB_TOKEN",
    ),
    *(
        "MLFLOW_TRACKING_USERNAME",
        "MLFLOW_TRACKING_PASSWORD",
        "MLFLOW_TRACKING_TOKEN",
        "DATABASE_URL",
        "PGPASSWORD",
        "OPENAI_API_KEY",
        "GITHUB_TOKEN",
    ),
    *("SLACK_WEBHOOK_URL", "SMTP_PASSWORD", "PROMPTMILL_SIGNING_PASSWORD", "PREFECT_API_KEY", "DVC_REMOTE_PASSWORD", "SECRET_TOKEN"),
)
# Prefect's server keeps its own background jobs in the memory of its process, pickled (the library docket); nothing of a run is among them.
ALLOWED = {("uuid", "UUID", "prefect/__main__.py server start")}
LOOPBACK = {"127.0.0.1", "::1", "localhost"}


def events(file: Path) -> list[list[Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def addresses(found: list[list[Any]]) -> set[str]:
    return {event[1] for event in found if event[0] == "bind"}


def disallowed(found: list[list[Any]]) -> set[tuple[str, str, str]]:
    unpickled = {(event[1], event[2], event[3]) for event in found if event[0] == "pickle"}
    return {one for one in unpickled if not any(one[:2] == (module, name) and where in one[2] for module, name, where in ALLOWED)}


@pytest.mark.faults
def test_nothing_is_unpickled_all_addresses_are_loopback_and_no_secret_is_kept(
    repo_root: Path, tmp_path: Path, count: Callable[[str], None]
) -> None:
    assert len(set(SECRETS)) == 20
    root = make_checkout(repo_root, tmp_path / "checkout")
    watch = tmp_path / "watch"
    watch.mkdir()
    (watch / "sitecustomize.py").write_text(WATCH, encoding="utf-8")
    file = tmp_path / "events.jsonl"
    canaries = {name: f"canary{secrets.token_hex(12)}" for name in SECRETS}
    watched = {"PYTHONPATH": f"{root}{os.pathsep}{watch}", "PROMPTMILL_TEST_EVENTS": str(file), **canaries}
    variables = {**environment(root), **watched}

    subprocess.run([sys.executable, "-c", CONTROL], env=variables, check=True)
    seen = events(file)
    assert addresses(seen) == {"0.0.0.0"}
    assert {one[:2] for one in disallowed(seen)} == {("collections", "Counter")}
    file.unlink()

    command = [sys.executable, "-m", "flows.cli", "run", TASK, "--verbose"]
    done = subprocess.run(command, cwd=root, env=variables, capture_output=True, text=True, timeout=1500)
    assert done.returncode in (0, 3), done.stderr[-3000:]
    seen = events(file)
    assert addresses(seen)
    assert addresses(seen) <= LOOPBACK
    assert disallowed(seen) == set()

    files = [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
    assert {"prefect.db", "mlflow.db", "dvc.lock", "card.html", "manifest.json"} <= {path.name for path in files}
    content = {str(path.relative_to(root)): path.read_bytes() for path in files}
    content |= {"what it printed": (done.stdout + done.stderr).encode(), "events": file.read_bytes()}
    hits = [(path, name) for path, found in content.items() for name, value in canaries.items() if value.encode() in found]
    assert hits == []
    count(f"watched {len(seen)} events, {len(content)} files, 20 canaries: 0 unpickled classes of a run, 0 other addresses, 0 hits")
