"""The hard prompt template of a task in MLflow's Prompt Registry, as `<task>-template`, linked to the runs and versions that use it.

Prompts and registered models share MLflow's names, hence the suffix.
"""

import re
from typing import Any

from pipeline.layout import TEMPLATE_SUFFIX
from pipeline.registry.connection import Connection, quiet

MAXIMUM_VERSIONS = 1000


def template_name(task: str) -> str:
    """The name of the task's template in the Prompt Registry."""
    return f"{task}{TEMPLATE_SUFFIX}"


def as_mlflow_template(template: str) -> str:
    """A template of ours, `{field}`, as MLflow writes it: `{{field}}`."""
    return re.sub(r"\{([A-Za-z_][A-Za-z0-9_]*)\}", r"{{\1}}", template)


def register_template(connection: Connection, *, task: str, template: str) -> Any:
    """The registry's version of this very text: the newest one that has it, or a new one."""
    name, text = template_name(task), as_mlflow_template(template)
    with quiet():
        known = connection.client.search_prompts(f"name = '{name}'")
        versions = connection.client.search_prompt_versions(name, max_results=MAXIMUM_VERSIONS) if known else []
        same = [version for version in versions if version.template == text]
        if same:
            return max(same, key=_number)
        return connection.client.register_prompt(name, text, tags={"promptmill.task": task})


def link_template(connection: Connection, prompt: Any, *, run_id: str, model_id: str) -> None:
    """Link a template's version to a run and to a logged model, in the tag that MLflow's pages read.

    MLflow's own call for it writes to the store of its global tracking URI, and not to the client's.
    """
    from mlflow.tracing.constant import TraceTagKey
    from mlflow.tracing.utils.prompt import update_linked_prompts_tag

    key, client = TraceTagKey.LINKED_PROMPTS, connection.client
    client.set_tag(run_id, key, update_linked_prompts_tag(client.get_run(run_id).data.tags.get(key), [prompt]))
    client.set_logged_model_tags(model_id, {key: update_linked_prompts_tag(client.get_logged_model(model_id).tags.get(key), [prompt])})


def _number(version: Any) -> int:
    return int(version.version)
