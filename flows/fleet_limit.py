"""How many tasks of fleets are at work at once on one work pool: a global concurrency limit of the Prefect server that the user's settings name.

A fleet retrains its tasks in its own process, so the pool's own limit sees one flow run however many tasks that has at once, and knows nothing of fleets that people start by hand
or on other machines. Each task therefore takes a slot of its pool's limit, which `promptmill deploy` makes as large as `deployment.pool.limit`. The server that a
single command starts for itself is asked by nobody else: there, `--at-once` is the limit.
"""

from collections.abc import Generator
from contextlib import contextmanager

from flows.promotion_lock import server_named

LEASE_SECONDS = 60.0  # the least Prefect allows: the slot of a fleet that was killed is free again after that


def limit_name(pool: str) -> str:
    """The concurrency limit of the fleets' tasks of one work pool."""
    return f"promptmill-fleet-{pool}"


@contextmanager
def fleet_slot(pool: str) -> Generator[None]:
    """Wait for a slot of the pool, and hold it for the length of the block; without a standing server, or a limit on it, there is nothing to wait for.

    A server that is restarted meanwhile loses the lease and not the work: the block goes on.
    """
    if not server_named():
        yield
        return
    from prefect.concurrency.sync import concurrency

    with concurrency(limit_name(pool), lease_duration=LEASE_SECONDS, strict=False, raise_on_lease_renewal_failure=False):
        yield
