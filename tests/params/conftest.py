import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from pipeline.errors import ParamsError
from pipeline.params import load


def _set(document: dict[str, Any], path: str, value: Any) -> None:
    *above, last = path.split("/")
    node: Any = document
    for part in above:
        node = node[int(part)] if isinstance(node, list) else node[part]
    if value is ...:
        node.pop(last, None)
    elif isinstance(node, list):
        node[int(last)] = value
    else:
        node[last] = value


@pytest.fixture(scope="session")
def demo(repo_root: Path) -> dict[str, Any]:
    """The repository's own params.yaml, which is valid, as a plain document with the demo task alone."""
    document = YAML(typ="safe").load(repo_root / "params.yaml")
    document["tasks"] = {"tweet_sentiment": document["tasks"]["tweet_sentiment"]}
    return document


@pytest.fixture
def altered(demo: dict[str, Any], tmp_path: Path) -> Callable[..., Path]:
    """Write the demo's params.yaml with the values at some `a/b/0/c` paths replaced, or removed (`...`)."""

    def write(changes: dict[str, Any]) -> Path:
        document = copy.deepcopy(demo)
        for path, value in changes.items():
            _set(document, path, value)
        file = tmp_path / "params.yaml"
        with file.open("w", encoding="utf-8") as stream:
            YAML(typ="safe").dump(document, stream)
        return file

    return write


@pytest.fixture
def errors(altered: Callable[..., Path]) -> Callable[[dict[str, Any]], list[str]]:
    """The error lines that loading an altered params.yaml ends with; fails when it loads."""

    def read(changes: dict[str, Any]) -> list[str]:
        path = altered(changes)
        with pytest.raises(ParamsError) as caught:
            load(path)
        head, *lines = str(caught.value).split("\n")
        assert head == f"{path} has {len(lines)} error(s); correct these keys:"
        return [line.strip() for line in lines]

    return read
