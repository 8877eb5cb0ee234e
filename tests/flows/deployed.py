"""A folder with a params.yaml from which `promptmill deploy` sets up a Prefect server, and clearing that server again."""

from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient
from ruamel.yaml import YAML

from flows import cli
from tests.flows.flow_workspace import REPOSITORY

TASK = "tweet_sentiment"


class Checkout:
    """A folder with a params.yaml whose sections `deployment` a test sets, and the command in it."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.root = root
        self._capsys = capsys
        self._document: Any = YAML(typ="safe").load(REPOSITORY / "params.yaml")
        self.write()

    def set(self, task: str, **section: Any) -> None:
        self._document["tasks"][task]["deployment"] = section
        self.write()

    def set_fleet(self, **values: Any) -> None:
        """Change keys of `fleet`; without any it is left out."""
        if values:
            self._document["fleet"] |= values
        else:
            del self._document["fleet"]
        self.write()

    def drop(self, task: str) -> None:
        del self._document["tasks"][task]
        self.write()

    def write(self) -> None:
        with (self.root / "params.yaml").open("w", encoding="utf-8") as stream:
            YAML(typ="safe").dump(self._document, stream)

    def deploy(self, *options: str) -> str:
        self._capsys.readouterr()
        code = cli.main(["deploy", "--project", "demo", *options])
        printed = self._capsys.readouterr()
        assert code == 0, printed.err
        return printed.out

    def fails(self) -> str:
        self._capsys.readouterr()
        assert cli.main(["deploy", "--project", "demo"]) == 1
        return self._capsys.readouterr().err


def clear(client: SyncPrefectClient) -> None:
    """Remove what tests made: the server is one for all of them."""
    for deployment in client.read_deployments():
        client.delete_deployment(deployment.id)
    for automation in client.read_automations():
        client.delete_automation(automation.id)
    for pool in client.read_work_pools():
        client.delete_work_pool(pool.name)
    for document in client.read_block_documents():
        if str(document.name).startswith("promptmill-"):
            client.delete_block_document(document.id)
