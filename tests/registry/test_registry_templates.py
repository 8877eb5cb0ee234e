"""The hard prompt template in MLflow's Prompt Registry: one version per text, linked to run and model."""

import json

from mlflow import MlflowClient

from pipeline.registry.connection import connect
from pipeline.registry.registry import show
from pipeline.registry.templates import as_mlflow_template, register_template, template_name
from tests.registry.registry_workspace import TASK, Workspace


def test_fields_get_mlflows_braces_and_nothing_else_does() -> None:
    assert as_mlflow_template("Tweet: {text}\n{not a field} {}:") == "Tweet: {{text}}\n{not a field} {}:"


def test_a_registered_version_is_linked_to_its_template_and_equal_templates_share_a_version(workspace: Workspace) -> None:
    workspace.make(1)
    assert workspace.register() == 1
    workspace.make(2)
    assert workspace.register() == 2
    connection = connect(root=workspace.root)
    client: MlflowClient = connection.client
    name = template_name(TASK)
    assert [(version.version, version.template) for version in client.search_prompt_versions(name)] == [(1, "Tweet: {{text}}\nSentiment:")]
    for number in (1, 2):
        version = client.get_model_version(TASK, str(number))
        assert version.tags["promptmill.template"] == f"prompts:/{name}/1"
        run = client.get_run(version.run_id)
        linked = json.loads(run.data.tags["mlflow.linkedPrompts"])
        assert linked == [{"name": name, "version": "1"}]
        assert json.loads(client.get_logged_model(run.outputs.model_outputs[0].model_id).tags["mlflow.linkedPrompts"]) == linked
    assert register_template(connection, task=TASK, template="{text} is").version == 2
    assert register_template(connection, task=TASK, template="Tweet: {text}\nSentiment:").version == 1
    assert show(root=workspace.root, task=TASK, selector=1)["version"] == 1
