"""The lock of promotions on a shared Prefect server: a global concurrency limit of one per task, held under a lease.

`pipeline.registry.promotion` takes it as a plain function. The server that a single `promptmill run` starts for itself is no place for a
lock, since nobody else asks it and it ends with the run: there, the lock of this machine has to do.
"""

import hashlib
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager

from pipeline.errors import RegistryError
from pipeline.registry.connection import LOCK_SECONDS
from pipeline.registry.locks import SharedLock

SETTINGS = ("PREFECT_API_URL", "PREFECT_PROFILE", "PREFECT_PROFILES_PATH", "PREFECT_HOME")
EMBEDDED_VARIABLE = "PROMPTMILL_EMBEDDED_PREFECT"
LEASE_SECONDS = 60.0  # the least Prefect allows: a killed holder's slot is free again after that


def shared_lock() -> SharedLock | None:
    """The lock of the Prefect server that the user's settings name, or None where there is no such server."""
    return prefect_lock if server_named() else None


def server_named() -> bool:
    """Whether the user's settings name a Prefect server; the one that a single `promptmill run` starts for itself is none."""
    named = any(os.environ.get(name) for name in SETTINGS) or "prefect" in sys.modules
    if os.environ.get(EMBEDDED_VARIABLE) or not named:
        return False  # without importing prefect, which takes seconds
    from prefect.settings import PREFECT_API_URL

    return bool(PREFECT_API_URL.value())


@contextmanager
def prefect_lock(task: str) -> Generator[str]:
    """Hold the task's slot; yields a name of the server that keeps it. Raises RegistryError when it is not to be had."""
    from prefect.concurrency.sync import concurrency
    from prefect.exceptions import PrefectHTTPStatusError
    from prefect.settings import PREFECT_API_URL

    name = limit_name(task)
    acquired = False
    try:
        _make_limit(name)
        with concurrency(name, timeout_seconds=LOCK_SECONDS, lease_duration=LEASE_SECONDS, strict=True):
            acquired = True
            yield "prefect:" + hashlib.sha256(str(PREFECT_API_URL.value()).encode()).hexdigest()[:16]
    except (TimeoutError, PrefectHTTPStatusError) as error:
        if acquired:
            raise
        raise RegistryError(
            f"The Prefect concurrency limit {name} was not to be had for {LOCK_SECONDS:g} s ({type(error).__name__}). Another promotion may be at work; if "
            f"none is, the server lost a lease when it was restarted: `prefect gcl update {name} --active-slots 0`."
        ) from error


def limit_name(task: str) -> str:
    """The concurrency limit of one task."""
    return f"promptmill-promotion-{task}"


def _make_limit(name: str) -> None:
    """Make the limit unless it is there; two that make it at once are one too many, which the server says."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
    from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

    with get_client(sync_client=True) as client:
        try:
            client.read_global_concurrency_limit_by_name(name)
        except ObjectNotFound:
            try:
                client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=1))
            except ObjectAlreadyExists:
                return
