"""Whether a task's outputs, as they are, have been through everything already: recorded, registered, judged, and promoted or answered."""

from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path
from typing import Any

from flows.dvc_state import LOCK_FILE
from flows.workspace import changed_stages
from pipeline.errors import RegistryError
from pipeline.layout import PARAMS_FILE


def handled_version(root: Path, task: str) -> dict[str, Any] | None:
    """The version made from the outputs as they are now, once it needs nothing more: not let pass, waiting for a person or answered by one, champion, or champion in the past.

    None when a stage would run again, or when recording, registering or promoting is still to be done.
    """
    from pipeline.params import load_task
    from pipeline.registry.registry import list_versions
    from pipeline.registry.tracking import lock_entries, stage_key

    with ThreadPoolExecutor(max_workers=1) as pool:  # DVC looks in a process of its own while MLflow is imported: seconds each
        looking = pool.submit(copy_context().run, changed_stages, root, task)
        try:
            versions = list_versions(root=root, task=task)
        except RegistryError:
            versions = []  # nothing registered yet, or no store: the flow makes one, or says why it cannot
        if looking.result():
            return None
    key = stage_key(entries=lock_entries(lock=root / LOCK_FILE, task=task))
    approval = load_task(root / PARAMS_FILE, task).promotion.approval
    champion = next((version["version"] for version in versions if "champion" in version["aliases"]), None)
    return next((v for v in versions if v["stage_key"] == key and _needs_nothing(v, approval, champion)), None)


def _needs_nothing(version: dict[str, Any], approval: str, champion: int | None) -> bool:
    """Whether a version is at its end, or waits for a person who would still decide against the champion there is."""
    from pipeline.registry.approval import needs_approval

    if "champion" in version["aliases"] or version["promoted_at"] or (version["approval"] or {}).get("approved") is False:
        return True
    if needs_approval(approval=approval, decision=version["gate_decision"]):
        return version["approval_request"] is not None and version["approval_request"]["champion"] == champion
    return version["gate_decision"] != "promote"
