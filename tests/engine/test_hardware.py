from pathlib import Path

import pytest
import torch

from pipeline.engine.hardware import describe_hardware, driver_version

MODULE = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Thu Jan 23 03:35:09 UTC 2025\nGCC version:  gcc 11\n"
OPEN_MODULE = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  575.57.08  Release Build\n"


@pytest.mark.parametrize(("text", "version"), [(MODULE, "570.86.15"), (OPEN_MODULE, "575.57.08"), ("", None), ("no figure here\n", None)])
def test_the_driver_is_what_its_kernel_module_says(tmp_path: Path, text: str, version: str | None):
    (tmp_path / "version").write_text(text, encoding="utf-8")
    assert driver_version(tmp_path / "version") == version


def test_without_the_module_there_is_no_driver(tmp_path: Path):
    assert driver_version(tmp_path / "version") is None
    described = describe_hardware(torch.device("cpu"))
    assert set(described) == {"device", "machine", "cpu_capability", "threads"}
