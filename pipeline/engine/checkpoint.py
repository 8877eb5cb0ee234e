"""Checkpoints: what a training run needs to go on after it was stopped or killed, bit for bit as if it had not been.

One safetensors file and no pickle. Its metadata names the format, the caller's key, a sha256 of the content (safetensors has no
checksum) and the state as JSON; the records emitted so far are a tensor of JSON bytes, since safetensors limits its metadata. A
file is written beside its place, flushed to the disk and put there in one step, so whoever looks sees the old file or the new one.

The file before the newest is kept beside it. Training goes on from the newest one that is whole: a file that is truncated or altered,
or that a kill between two renames left absent, costs the steps since the one before it, and whoever loads is told. When there is
no file at all, training starts at step 0. A save that was killed leaves only its temporary file, which is never read. When it is an
error (CheckpointError): no file that is there can be used, or the newest whole one is of another key or does not fit the trials.
A checkpoint is hours of work, so it is never passed over or overwritten unasked. Let the file's name hold the key, and another key
means that somebody moved the file.
"""

import hashlib
import json
import os
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from pipeline.errors import CheckpointError

FORMAT = "promptmill-checkpoint-1"
RECORDS = "records"
Tensors = dict[str, torch.Tensor]
State = dict[str, Any]


class DamagedCheckpoint(CheckpointError):
    """A checkpoint file that was whole once and is not any more: truncated, or with other bytes."""

    def __init__(self, path: Path, found: str) -> None:
        super().__init__(_refused(path, found))
        self.found = f"The checkpoint {path} {found}"


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A run between two steps: tensors by name, the remaining state as JSON values, and the records emitted so far."""

    tensors: Tensors
    state: State
    records: list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Where a run keeps its snapshot, and every how many steps.

    `key` stands for everything that decides what the run computes: hash the params, the inputs and, since other hardware gives
    other bits, the hardware. Of several processes only one `writes`; all of them load. `say` is told of a damaged file.
    """

    path: Path
    key: str
    every: int
    writes: bool = True
    say: Callable[[str], None] = lambda message: None

    def save(self, snapshot: Snapshot) -> None:
        """Put `snapshot` in place of the former one; raises CheckpointError when the disk refuses it."""
        if not self.writes:
            return
        content = _content(self.key, snapshot)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if self.path.exists():
                self.path.replace(self.previous)
            self._temporary.replace(self.path)
            _flush_folder(self.path.parent)
        except OSError as error:
            raise CheckpointError(
                f"The checkpoint {self.path} cannot be written: {error}. Free space or allow writing there, then start again."
            ) from error

    def load(self) -> Snapshot | None:
        """The newest snapshot that is whole, or None when there is no file.

        A damaged newest file is set aside as `<name>.damaged`, so that the next save leaves the whole one in place. Raises
        CheckpointError when there are files and none can be used, or the newest whole one is another run's.
        """
        damage: DamagedCheckpoint | None = None
        for path in (self.path, self.previous):
            if not path.exists():
                continue
            try:
                snapshot = self._read(path)
            except DamagedCheckpoint as error:
                damage = damage or error
                continue
            if damage is not None:
                self.say(f"{damage.found}; training goes on from the one before it, {path.name}, which is whole.")
                if self.writes:
                    self.path.replace(self._damaged)
            return snapshot
        if damage is not None:
            raise damage
        return None

    def _read(self, path: Path) -> Snapshot:
        try:
            with safe_open(path, framework="pt") as file:
                metadata: dict[str, str] = file.metadata() or {}
                # Copies: a training run must not depend on how a file's bytes happen to be aligned.
                tensors: Tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise DamagedCheckpoint(path, f"cannot be read as safetensors ({error})") from error
        self._check(path, metadata, tensors)
        records = json.loads(tensors.pop(RECORDS).numpy().tobytes())
        return Snapshot(tensors=tensors, state=json.loads(metadata["state"]), records=records)

    def remove(self) -> None:
        """Leave nothing behind; to be called when the run's outputs are in place."""
        if self.writes:
            for path in (self.path, self.previous, self._damaged, self._temporary):
                path.unlink(missing_ok=True)

    @property
    def previous(self) -> Path:
        """Where the file before the newest is kept."""
        return self.path.with_name(self.path.name + ".previous")

    @property
    def _damaged(self) -> Path:
        return self.path.with_name(self.path.name + ".damaged")

    @property
    def _temporary(self) -> Path:
        # One fixed name, so that killed saves do not pile up.
        return self.path.with_name(self.path.name + ".tmp")

    def _check(self, path: Path, metadata: Mapping[str, str], tensors: Tensors) -> None:
        found = _digest(metadata.get("key", ""), metadata.get("state", ""), tensors)
        if metadata.get("format") != FORMAT:
            raise DamagedCheckpoint(path, f"has the format {metadata.get('format')!r}, this version reads {FORMAT!r}")
        if metadata.get("sha256") != found or RECORDS not in tensors:
            raise DamagedCheckpoint(path, f"was altered: its content has the sha256 {found}, saved was {metadata.get('sha256')}")
        if metadata.get("key") != self.key:
            raise CheckpointError(
                _refused(path, f"belongs to the run {metadata.get('key')!r}, this run's key (its params and inputs) is {self.key!r}")
            )


def _refused(path: Path, found: str) -> str:
    return f"The checkpoint {path} {found}, so training cannot go on from it. Restore the file, or delete it to train from the first step."


def optimiser_snapshot(optimiser: torch.optim.Optimizer) -> tuple[Tensors, State]:
    """The per-parameter state as tensors named `index.name` and the rest as JSON. Parameter groups are made anew from the settings."""
    state: dict[int, dict[str, Any]] = optimiser.state_dict()["state"]
    named = {f"{index}.{name}": value for index, values in state.items() for name, value in values.items()}
    tensors = {name: value for name, value in named.items() if isinstance(value, torch.Tensor)}
    return tensors, {name: value for name, value in named.items() if name not in tensors}


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: Tensors, scalars: State) -> None:
    """Undo `optimiser_snapshot` on an optimiser of the same parameters."""
    state: dict[int, dict[str, Any]] = {}
    for name, value in {**tensors, **scalars}.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})


def random_snapshot() -> tuple[Tensors, State]:
    """The states of the random generators of Python, torch and, where it is in use, CUDA."""
    tensors = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        tensors |= {f"cuda.{index}": state for index, state in enumerate(torch.cuda.get_rng_state_all())}
    return tensors, {"python": random.getstate()}


def restore_random(tensors: Tensors, state: State) -> None:
    """Undo `random_snapshot`."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    torch.set_rng_state(tensors["torch"])
    for index, value in within(tensors, "cuda").items():
        torch.cuda.set_rng_state(value, int(index))


def within(tensors: Tensors, prefix: str) -> Tensors:
    """The tensors whose names start with `prefix` and a dot, by the rest of their names."""
    return {name[len(prefix) + 1 :]: value for name, value in tensors.items() if name.startswith(prefix + ".")}


def named(prefix: str, tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """Undo `within`."""
    return {f"{prefix}.{name}": value for name, value in tensors.items()}


def _content(key: str, snapshot: Snapshot) -> bytes:
    """The bytes of a checkpoint file."""
    records = torch.frombuffer(bytearray(json.dumps(snapshot.records).encode()), dtype=torch.uint8)
    tensors = {name: value.detach().cpu().contiguous() for name, value in {**snapshot.tensors, RECORDS: records}.items()}
    state = json.dumps(snapshot.state)
    return save(tensors, metadata={"format": FORMAT, "key": key, "state": state, "sha256": _digest(key, state, tensors)})


def _digest(key: str, state: str, tensors: Tensors) -> str:
    """sha256 over everything a checkpoint holds, in the order of names."""
    digest = hashlib.sha256(json.dumps([key, state]).encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _flush_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
