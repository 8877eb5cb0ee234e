"""The work pool and the deployment by which flows hand stages to workers."""

from contextlib import suppress

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.utilities.asyncutils import run_coro_as_sync
from prefect.utilities.callables import parameter_schema
from prefect.workers.utilities import get_default_base_job_template_for_infrastructure_type

from flows.run_stage import run_stage_on_worker
from flows.stage_order import FLOW_NAME
from pipeline.errors import WorkspaceError

ENTRYPOINT = "flows.run_stage.run_stage_on_worker"
POOL_TYPE = "process"


def register(pool: str) -> None:
    """Make the work pool `pool` of type process unless there is one, and make or update its deployment `run-stage/<pool>`.

    Raises WorkspaceError when the pool is of another type: its workers would not start the process that knows the checkout.
    """
    with get_client(sync_client=True) as client:
        try:
            kind = client.read_work_pool(pool).type
            if kind != POOL_TYPE:
                raise WorkspaceError(
                    f"The work pool {pool} is of type {kind}, and `promptmill worker` serves pools of type {POOL_TYPE}. Name another pool, here and in execution.tune."
                )
        except ObjectNotFound:
            template = run_coro_as_sync(get_default_base_job_template_for_infrastructure_type(POOL_TYPE)) or {}
            with suppress(ObjectAlreadyExists):  # another worker was quicker
                client.create_work_pool(WorkPoolCreate(name=pool, type=POOL_TYPE, base_job_template=template))
        client.create_deployment(
            client.create_flow_from_name(FLOW_NAME),
            pool,
            work_pool_name=pool,
            entrypoint=ENTRYPOINT,
            parameter_openapi_schema=parameter_schema(run_stage_on_worker).model_dump(),
            enforce_parameter_schema=False,
            description=f"Runs stages that flows hand to the work pool {pool}.",
        )
