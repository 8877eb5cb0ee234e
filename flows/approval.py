"""Asking a person: what the flow `retrain` announces before it ends, and the flow `promote` with a form for the answer.

The announcement is an event, for automations to tell people by mail or chat, and a page of the flow run. Nothing waits for the answer.
"""

from pathlib import Path
from typing import Any

from prefect import flow, pause_flow_run, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.input import RunInput

from flows.events import APPROVAL_REQUESTED, announce, announce_champion, where_to_read
from flows.promotion_lock import shared_lock
from flows.summary import artifact_key
from flows.terminal import say
from pipeline.layout import find_root
from pipeline.registry import approval

FORM_SECONDS, POLL_SECONDS = 24 * 3600, 5


class Approval(RunInput):
    """The answer to a request: who says so, for which manifest, and why. `manifest_sha256` may be its first 12 digits or more."""

    approved: bool
    by: str
    manifest_sha256: str
    reason: str


@task(
    name="ask for approval", task_run_name="ask for approval", cache_policy=NO_CACHE, persist_result=False, retries=2, retry_delay_seconds=5
)
def ask(root: Path, name: str, version: int) -> dict[str, Any]:
    """Write the request down where every machine sees it, and announce it; returns the request."""
    request = approval.request_approval(root=root, task=name, version=version)
    text = question(request)
    create_markdown_artifact(key=artifact_key("approval", name), markdown=text)
    lines = [text, *where_to_read(root, name, version)]
    announce(APPROVAL_REQUESTED, name, subject=f"{name} version {version} waits for approval", lines=lines, details=request)
    say(f"{name} version {version} waits for approval: promptmill approve {name} {version} --reason ...")
    return request


def question(request: dict[str, Any]) -> str:
    """The request for people, as Markdown: what is asked, about which manifest, and the two ways to answer."""
    name, version = request["task"], request["version"]
    against = "no champion" if request["champion"] is None else f"champion version {request['champion']}"
    doubts = [f"- {reason}" for reason in request["reasons"]] or ["- The gate let it pass."]
    return "\n".join(
        [
            f"# {name} version {version} waits for approval",
            "",
            *doubts,
            "",
            f"It was compared with {against}. Its manifest is `{request['manifest_sha256']}`.",
            "",
            f'Answer with `promptmill approve {name} {version} --reason "..."` or `promptmill reject ...`, or with a run of the flow `promote`.',
        ]
    )


@flow(name="promote", flow_run_name="promote-{task}-{version}", persist_result=False)
def promote(task: str, version: int, root: str = ".", answer: Approval | None = None) -> dict[str, Any]:
    """Answer for a version that waits: with `answer`, or by the form that this run shows when it is started without one.

    Returns what `pipeline.registry.approval` returns. Raises ApprovalError, ChampionChanged, NotPromoted or RegistryError.
    """
    workspace = find_root(Path(root).resolve())
    request = approval.request_approval(root=workspace, task=task, version=version)
    if answer is None:
        form = Approval.with_initial_data(description=question(request), manifest_sha256=request["manifest_sha256"])
        answer = pause_flow_run(wait_for_input=form, timeout=FORM_SECONDS, poll_interval=POLL_SECONDS)
    if not answer.approved:
        return approval.reject(root=workspace, task=task, version=version, reason=answer.reason, by=answer.by)
    done = approval.approve(
        root=workspace,
        task=task,
        version=version,
        reason=answer.reason,
        by=answer.by,
        manifest=answer.manifest_sha256,
        lock=shared_lock(),
    )
    announce_champion(workspace, done, why=f"Approved by {answer.by}: {answer.reason}")
    return done
