"""What the machine can do: the device, the data type and the attention kernel that `auto` stands for."""

import os
import platform
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.utils.deterministic

from pipeline.errors import BaseModelError

DRIVER_FILE = Path("/proc/driver/nvidia/version")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(asked: str = "auto") -> torch.device:
    """`auto` is a CUDA GPU when there is one, else the CPU; raises BaseModelError for a device that is not there.

    Under `torchrun` or `accelerate launch` it is this process's own GPU: they number the processes of a machine in LOCAL_RANK.
    """
    if asked == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        rank = os.environ.get("LOCAL_RANK")
        # A launcher may also have left each process only its own GPU to see.
        return torch.device("cuda") if rank is None else torch.device("cuda", int(rank) % torch.cuda.device_count())
    device = torch.device(asked)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BaseModelError(f"The device {asked!r} was asked for, but torch finds no CUDA GPU. Use `auto` or `cpu`.")
    return device


def choose_dtype(asked: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 where the hardware multiplies it natively, else float32 (emulated bfloat16 is slower)."""
    if asked != "auto":
        return DTYPES[asked]
    native = torch.cuda.is_bf16_supported() if device.type == "cuda" else _cpu_multiplies_bfloat16()
    return torch.bfloat16 if native else torch.float32


def choose_attention(asked: str, device: torch.device) -> str:
    """`auto` is eager on a CPU (measured faster there on short texts) and sdpa on a GPU.

    Raises BaseModelError for flex_attention on a CPU: torch has no backward pass for it there, and its compiled kernel crashes on
    some shapes (torch 2.13).
    """
    if asked == "flex_attention" and device.type == "cpu":
        raise BaseModelError(
            "The attention kernel 'flex_attention' was asked for on a CPU, where torch cannot train with it. Use `auto` or `eager`."
        )
    if asked != "auto":
        return asked
    return "eager" if device.type == "cpu" else "sdpa"


def set_product_precision(device: torch.device, *, tf32: bool) -> None:
    """State for this process how a GPU multiplies, instead of leaving it to what torch or another library has chosen.

    Float32 products are IEEE unless `tf32` allows TensorFloat-32 (10 bits of mantissa in the factors, float32 sums), in cuBLAS and in
    cuDNN (p_tuning's LSTM), where torch allows it by default. Sums of bfloat16 and float16 products are float32: in their own type they
    would depend on how a kernel splits them. On a CPU float32 is float32.
    """
    allowed = tf32 and device.type == "cuda"
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False


def dtype_name(dtype: torch.dtype) -> str:
    """`bfloat16` for torch.bfloat16."""
    return str(dtype).removeprefix("torch.")


def describe_hardware(device: torch.device) -> dict[str, Any]:
    """What decides whether a run gives the same bits: the instruction set and threads of a CPU, or the GPU and its driver."""
    described: dict[str, Any] = {
        "device": device.type,
        "machine": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        gpu = {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda, "driver": driver_version()}
        described |= {**gpu, "tf32": torch.get_float32_matmul_precision() != "highest"}
    return described


def driver_version(file: Path = DRIVER_FILE) -> str | None:
    """The NVIDIA driver's version, such as 570.86.15, as its kernel module tells it; None where there is no such module."""
    try:
        words = file.read_text(encoding="utf-8", errors="replace").splitlines()[0].split()
    except (OSError, IndexError):
        return None
    return next((word for word in words if word[0].isdigit() and "." in word), None)


def gpu_usage(device: torch.device) -> dict[str, float]:
    """Memory in use on the GPU, by whoever, in megabytes of 10^6 bytes and in percent, under MLflow's names; empty for a CPU."""
    if device.type != "cuda":
        return {}
    free, total = torch.cuda.mem_get_info(device)
    number = device.index or 0
    return {
        f"gpu_{number}_memory_usage_megabytes": (total - free) / 1e6,
        f"gpu_{number}_memory_usage_percentage": 100 * (total - free) / total,
    }


@contextmanager
def deterministic_algorithms() -> Generator[None]:
    """Within it torch refuses kernels whose result depends on timing; the former settings are restored afterwards.

    The mode would also fill every new tensor with NaN, to show reads of what was never written. That changes no other result and takes
    a kernel for each, thousands in a step, so it is left out.
    """
    memory: Any = torch.utils.deterministic
    filled = memory.fill_uninitialized_memory
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    # cuBLAS reads this when its handle is made; without it torch refuses matrix products in this mode.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
        memory.fill_uninitialized_memory = filled


def _cpu_multiplies_bfloat16() -> bool:
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
