import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

TASKS = ("tweet_sentiment", "second-task")


def read_yaml(path: Path) -> Any:
    """The document in a YAML file, as DVC reads it."""
    return YAML(typ="safe").load(path)


@pytest.fixture(scope="session")
def stages_in_file(repo_root: Path) -> dict[str, Any]:
    """The `stages` mapping of the committed dvc.yaml."""
    return read_yaml(repo_root / "dvc.yaml")["stages"]


@pytest.fixture(scope="session")
def copy_code(repo_root: Path) -> Callable[[Path], None]:
    """Copy what a stage needs to run, without byte code and without data, to an empty folder."""

    def copy(target: Path) -> None:
        for package in ("pipeline", "flows"):
            shutil.copytree(repo_root / package, target / package, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("params.yaml", "dvc.yaml", "pyproject.toml"):
            shutil.copy(repo_root / name, target)

    return copy


@pytest.fixture(scope="session")
def workspace(copy_code: Callable[[Path], None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DVC workspace with this repository's code and dvc.yaml and two tasks, nothing run yet."""
    from dvc.repo import Repo

    root = tmp_path_factory.mktemp("workspace")
    copy_code(root)
    params = read_yaml(root / "params.yaml")
    params["tasks"] = {task: copy.deepcopy(params["tasks"]["tweet_sentiment"]) for task in TASKS}
    write_params(root, params)
    Repo.init(str(root), no_scm=True).close()
    return root


def write_params(root: Path, params: Any) -> None:
    """Replace params.yaml below `root`."""
    with (root / "params.yaml").open("w", encoding="utf-8") as stream:
        YAML(typ="safe").dump(params, stream)
