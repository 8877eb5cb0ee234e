"""Tiny base models, made once per session."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from pipeline.engine.base_model import BaseModel, load_base_model
from tests.engine.tiny_models import save_model


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function from family to the folder of its tiny model, made once per session."""
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            save_model(family, made[family])
        return made[family]

    return folder


@pytest.fixture(scope="session")
def tiny(model_folder: Callable[[str], Path]) -> Callable[[str], BaseModel]:
    """A function from family to its loaded tiny base model in float32."""
    loaded: dict[str, BaseModel] = {}

    def base(family: str = "llama") -> BaseModel:
        if family not in loaded:
            source = {"kind": "directory", "id": f"tiny/{family}", "path": str(model_folder(family))}
            labels = 3 if family == "bert" else None
            loaded[family] = load_base_model(source=source, dtype="float32", device="cpu", num_labels=labels)
        return loaded[family]

    return base


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Tiny matrices gain nothing from threads and lose much when the machine is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
