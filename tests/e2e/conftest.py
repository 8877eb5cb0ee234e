"""One shortened clone for all end-to-end tests."""

from pathlib import Path

import pytest

from tests.e2e.short_workspace import Workspace, shortened_clone


@pytest.fixture(scope="session")
def workspace(repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return shortened_clone(repo_root, tmp_path_factory.mktemp("clone"))
