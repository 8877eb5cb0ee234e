"""A tiny base model and a task on it, made once per session."""

from pathlib import Path

import pytest
import torch

from benchmarks.arms import Task
from pipeline.engine.base_model import load_base_model
from pipeline.engine.batching import Example
from pipeline.engine.template import Verbalizers
from tests.engine.tiny_models import save_model


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny_llama")
    save_model("llama", folder)
    return folder


@pytest.fixture(scope="session")
def task(tiny_folder: Path) -> Task:
    base = load_base_model(source={"kind": "directory", "id": "tiny", "path": str(tiny_folder)}, dtype="float32", device="cpu")
    return Task(base, (20, 21, 22), Verbalizers(("a", "b", "c"), ((60,), (61,), (62,))))


@pytest.fixture(scope="session")
def examples() -> list[Example]:
    """48 examples of 2 to 12 tokens."""
    return [Example([30 + index % 7, *range(70, 71 + index % 11)], index % 3) for index in range(48)]


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
