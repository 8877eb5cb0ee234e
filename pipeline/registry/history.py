"""Who was champion when, made so by whom and why, with the figures of each."""

from pathlib import Path
from typing import Any

from pipeline.registry import promotion
from pipeline.registry.connection import connect, explained
from pipeline.registry.journal import DONE
from pipeline.registry.registry import show

METRICS = ("tuned/accuracy", "tuned/macro_f1")


def history(*, root: Path, task: str) -> list[dict[str, Any]]:
    """The reigns of `task`, oldest first: {version, action, since, until, by, reason, approval, previous_champion, manifest_sha256, run_id, metrics}.

    `until` is None for the champion of today. `metrics` are those of the version's run; None for a version that is there no more.
    Raises RegistryError when nothing is registered under this name or the store does not answer.
    """
    connection = connect(root=root)
    with explained(f"Reading the promotions of {task} in {connection.uri}", "Try again."):
        done = [entry for entry in promotion.promotions(connection, task) if entry["event"] == DONE]
    reigns: list[dict[str, Any]] = []
    for number, entry in enumerate(done):
        until = done[number + 1]["at"] if number + 1 < len(done) else None
        kept = {
            name: entry.get(name)
            for name in ("version", "action", "by", "reason", "approval", "previous_champion", "manifest_sha256", "run_id")
        }
        reigns.append({**kept, "since": entry["at"], "until": until, "metrics": _metrics(root, task, entry["version"])})
    return reigns


def _metrics(root: Path, task: str, version: int) -> dict[str, float]:
    """The figures of the version's run, without the ends of their intervals."""
    metrics = show(root=root, task=task, selector=version)["metrics"]
    return {name: value for name, value in sorted(metrics.items()) if not name.endswith(("_low", "_high"))}
