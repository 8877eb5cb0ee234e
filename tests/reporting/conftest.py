import shutil
from pathlib import Path

import pytest

from tests.reporting.card_run import Run, build_run


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that the gate would promote; tests copy it."""
    return build_run(tmp_path_factory.mktemp("pristine"), rows=600, replicates=200, skill=0.75, champion=0.5)


@pytest.fixture
def run(pristine: Run, tmp_path: Path) -> Run:
    shutil.copytree(pristine.root, tmp_path, dirs_exist_ok=True)
    return Run(tmp_path, pristine.params)
