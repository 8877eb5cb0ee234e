"""What `promptmill worker` sets up on a Prefect server; that workers run stages is in tests/services."""

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate

from flows.worker_deployment import register
from pipeline.errors import WorkspaceError


@pytest.mark.usefixtures("prefect_server")
def test_a_second_worker_finds_the_pool_and_the_deployment_of_the_first() -> None:
    found = []
    for _ in range(2):
        register("gpu-of-a-test")
        with get_client(sync_client=True) as client:
            deployment = client.read_deployment_by_name("run-stage/gpu-of-a-test")
            found.append((client.read_work_pool("gpu-of-a-test").id, deployment.id, deployment.entrypoint))
    assert found[0] == found[1]
    assert found[0][2] == "flows.run_stage.run_stage_on_worker"


@pytest.mark.usefixtures("prefect_server")
def test_a_pool_of_another_type_is_refused_and_left_alone() -> None:
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="cluster-of-a-test", type="kubernetes"))
        with pytest.raises(WorkspaceError, match="is of type kubernetes, and `promptmill worker` serves pools of type process"):
            register("cluster-of-a-test")
        assert "cluster-of-a-test" not in [deployment.name for deployment in client.read_deployments()]
