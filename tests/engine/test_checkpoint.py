"""Interrupted training ends with the bits of uninterrupted training, and no file but its own checkpoint is gone on from."""

import json
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.engine.checkpoint import Checkpoint, Snapshot, optimiser_snapshot, restore_optimiser
from pipeline.engine.methods import TunedModule
from pipeline.engine.soft_prompt import SoftPrompt
from pipeline.errors import CheckpointError, TrainingInterrupted
from tests.engine.killed_training import KINDS, TRIALS
from tests.engine.tiny_training import OPTIMISERS, fingerprint, run, tiny_learner


class Stopper:
    """Asks to stop at the n-th question."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self) -> bool:
        self.left -= 1
        return self.left == 0


class NoisyModule(TunedModule):
    """A soft prompt that looks different at each call, by both random generators."""

    def forward(self) -> SoftPrompt:
        prompt = super().forward()
        noise = torch.nn.functional.dropout(torch.ones_like(prompt.values), 0.1) * random.uniform(0.9, 1.1)
        return SoftPrompt(prompt.values * noise, prompt.kind)


def noisy_learner(base):
    learner = tiny_learner(base)
    learner.modules = [NoisyModule(module.encoder, module.num_virtual_tokens, module.kind) for module in learner.modules]
    return learner


@pytest.fixture(scope="module")
def killed(model_folder, tmp_path_factory, repo_root, request) -> Path:
    """The folder in which killed_training has run, in as many rounds as the parameter says."""
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, "-m", "tests.engine.killed_training", str(model_folder("llama")), str(folder), str(request.param)]
    done = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, timeout=300 + 200 * request.param)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("optimiser", list(OPTIMISERS))
@pytest.mark.parametrize(("killed", "rounds"), [(1, 1), pytest.param(4, 4, marks=pytest.mark.faults)], indirect=["killed"])
def test_training_killed_at_any_point_ends_with_the_bits_of_an_uninterrupted_run(tiny, killed, rounds, optimiser):
    records: list[dict] = []
    result = run(tiny(), optimiser=OPTIMISERS[optimiser], on_record=records.append, **TRIALS)
    assert any("halved away" in trial.ended for trial in result.trials)
    deaths = {kind: -signal.SIGXFSZ if kind == "writing" else -signal.SIGKILL for kind in KINDS}
    for number in range(rounds):
        found = json.loads((killed / f"{optimiser}-{number}.json").read_text())
        *kills, stopped, last = found["ends"]
        expected = [deaths[kind] for kind, _ in found["points"][:-2]]
        assert len(kills) == 8
        if number == 0:
            assert [*kills, stopped] == [*expected, TrainingInterrupted.exit_code]
        # A later round's points are random too: now and then a run is at its end before its point comes.
        assert all(end in (death, 0) for end, death in zip(kills, expected, strict=True))
        assert sum(end != 0 for end in kills) >= 6
        assert (stopped in (TrainingInterrupted.exit_code, 0), last) == (True, 0)
        assert found["last"] == fingerprint(result, records)
    assert not list(killed.glob(f"{optimiser}.safetensors*"))  # remove() was called at the end


@pytest.fixture(scope="module")
def uninterrupted(tiny) -> dict:
    """The fingerprint of a run whose soft prompt draws noise, from known states of the generators."""
    torch.manual_seed(0)
    random.seed(0)
    records: list[dict] = []
    return fingerprint(run(tiny(), learner=noisy_learner(tiny()), on_record=records.append), records)


@pytest.mark.parametrize("stopped_after", [1, 20, 39])
def test_a_stop_saves_where_it_is_and_a_resumed_run_repeats_the_former_records(tiny, tmp_path, uninterrupted, stopped_after):
    checkpoint = Checkpoint(path=tmp_path / "new folder" / "run.safetensors", key="k", every=7)
    torch.manual_seed(0)
    random.seed(0)
    before: list[dict] = []
    with pytest.raises(TrainingInterrupted, match=rf"stop after step {stopped_after} of 40\. Start it again"):
        run(tiny(), learner=noisy_learner(tiny()), on_record=before.append, checkpoint=checkpoint, stop=Stopper(stopped_after))
    assert [record for record in before if record["event"] == "step"][-1]["step"] == stopped_after
    torch.manual_seed(99)  # another process would have other states
    random.seed(99)
    records: list[dict] = []
    resumed = run(tiny(), learner=noisy_learner(tiny()), on_record=records.append, checkpoint=checkpoint)
    assert records[: len(before)] == before
    assert fingerprint(resumed, records) == uninterrupted


def test_a_finished_run_is_not_trained_again_before_its_checkpoint_is_removed(tiny, tmp_path):
    checkpoint = Checkpoint(path=tmp_path / "run.safetensors", key="k", every=1000)
    records: list[dict] = []
    first = run(tiny(), checkpoint=checkpoint, on_record=records.append, stop=Stopper(40))  # too late: it is done
    again: list[dict] = []
    second = run(tiny(), checkpoint=checkpoint, on_record=again.append)
    assert again == records  # with their times, so nothing was computed
    assert fingerprint(second, again) == fingerprint(first, records)
    checkpoint.remove()
    assert list(tmp_path.iterdir()) == []
    checkpoint.remove()  # and nothing to remove is no error


def test_stopping_without_a_checkpoint_says_that_nothing_was_kept(tiny):
    with pytest.raises(TrainingInterrupted, match="Nothing was kept") as stopped:
        run(tiny(), stop=Stopper(3))
    assert stopped.value.exit_code == 75


def example_snapshot() -> Snapshot:
    return Snapshot(
        tensors={
            "scalar": torch.tensor(0.1),
            "empty": torch.empty(0, 3),
            "half": torch.randn(3, 2, generator=torch.Generator().manual_seed(0)).bfloat16(),
            "bytes": torch.arange(5, dtype=torch.uint8),
            "transposed": torch.arange(6.0).view(2, 3).T,
        },
        state={"step": 3, "nested": [{"loss": 0.1 + 0.2}], "infinite": float("inf")},
        records=[{"event": "step", "loss": 1 / 3, "text": "é"}],
    )


@pytest.fixture
def saved(tmp_path) -> Checkpoint:
    """A checkpoint on the disk."""
    checkpoint = Checkpoint(path=tmp_path / "run.safetensors", key="mine", every=1)
    checkpoint.save(example_snapshot())
    return checkpoint


def test_what_was_saved_is_loaded(saved):
    found, expected = saved.load(), example_snapshot()
    assert found.state == expected.state
    assert found.records == expected.records
    assert found.tensors.keys() == expected.tensors.keys()
    for name, value in expected.tensors.items():
        assert found.tensors[name].dtype == value.dtype
        assert torch.equal(found.tensors[name], value), name
    assert [path.name for path in saved.path.parent.iterdir()] == ["run.safetensors"]


def test_a_half_written_temporary_file_is_not_used(saved):
    half = saved.path.read_bytes()[:100]
    leftover = saved.path.with_name("run.safetensors.tmp")
    leftover.write_bytes(half)
    assert saved.load().state["step"] == 3
    saved.path.unlink()
    assert saved.load() is None
    saved.save(example_snapshot())
    assert saved.load().state["step"] == 3
    leftover.write_bytes(half)
    saved.remove()
    assert list(saved.path.parent.iterdir()) == []


def test_a_checkpoint_of_another_run_is_refused_and_kept(saved):
    other = Checkpoint(path=saved.path, key="another", every=1)
    with pytest.raises(
        CheckpointError, match=r"run\.safetensors belongs to the run 'mine'.*'another'.*delete it to train from the first step"
    ):
        other.load()
    assert saved.load().state["step"] == 3


def test_a_checkpoint_of_another_format_is_refused(saved):
    save_file(load_file(saved.path), saved.path, metadata={"format": "promptmill-checkpoint-0", "key": "mine", "state": "{}"})
    with pytest.raises(CheckpointError, match="'promptmill-checkpoint-0', this version reads 'promptmill-checkpoint-1'"):
        saved.load()


def test_a_truncated_checkpoint_is_refused_wherever_it_ends(saved):
    content = saved.path.read_bytes()
    for length in [0, 1, 7, 8, 100, len(content) // 2, len(content) - 1]:
        saved.path.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
            saved.load()


def test_no_flipped_bit_goes_unnoticed(saved):
    content = saved.path.read_bytes()
    randomness = random.Random(0)
    for _ in range(300):
        altered = bytearray(content)
        altered[randomness.randrange(len(content))] ^= 1 << randomness.randrange(8)
        saved.path.write_bytes(altered)
        with pytest.raises(CheckpointError):
            saved.load()
    saved.path.write_bytes(content)
    assert saved.load() is not None


def damaged(content: bytes, how: str) -> bytes:
    if how == "truncated":
        return content[: len(content) // 2]
    if how == "empty":
        return b""
    altered = bytearray(content)
    altered[-5] ^= 1
    return bytes(altered)


@pytest.mark.parametrize("how", ["truncated", "empty", "altered"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before_it_and_ends_with_the_same_bits(tiny, tmp_path, uninterrupted, how):
    said: list[str] = []
    checkpoint = Checkpoint(path=tmp_path / "run.safetensors", key="k", every=4, say=said.append)
    torch.manual_seed(0)
    random.seed(0)
    with pytest.raises(TrainingInterrupted):
        run(tiny(), learner=noisy_learner(tiny()), checkpoint=checkpoint, stop=Stopper(14))
    checkpoint.path.write_bytes(damaged(checkpoint.path.read_bytes(), how))
    assert checkpoint.load().state["step"] == 12  # saved at 4, 8, 12 and, when it was stopped, at 14
    assert len(said) == 1
    assert "run.safetensors" in said[0]
    assert "goes on from the one before it" in said[0]
    records: list[dict] = []
    result = run(tiny(), learner=noisy_learner(tiny()), checkpoint=checkpoint, on_record=records.append)
    assert fingerprint(result, records) == uninterrupted
    checkpoint.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_kill_between_the_two_renames_leaves_the_one_before_and_two_damaged_ones_are_an_error(saved):
    saved.save(Snapshot(tensors={}, state={"step": 6}, records=[]))
    assert saved.load().state["step"] == 6
    newest = saved.path.read_bytes()
    saved.path.unlink()
    assert saved.load().state["step"] == 3
    saved.path.write_bytes(damaged(newest, "altered"))
    saved.previous.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"run\.safetensors cannot be read.*delete it to train from the first step"):
        saved.load()


def test_a_pickle_is_refused(saved):
    torch.save({"state": 1}, saved.path)
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        saved.load()


def test_a_checkpoint_of_other_trials_is_refused(tiny, tmp_path):
    checkpoint = Checkpoint(path=tmp_path / "run.safetensors", key="k", every=1)
    with pytest.raises(TrainingInterrupted):
        run(tiny(), trials=2, checkpoint=checkpoint, stop=Stopper(2))
    with pytest.raises(CheckpointError, match="does not fit these trials"):
        run(tiny(), trials=3, checkpoint=checkpoint)
    with pytest.raises(CheckpointError, match=r"does not fit these trials.*size mismatch"):
        run(tiny(), trials=2, learner=tiny_learner(tiny(), 2, num_virtual_tokens=4), checkpoint=checkpoint)


def test_a_disk_that_refuses_is_an_error_that_names_the_file(tmp_path):
    (tmp_path / "file").write_text("in the way")
    checkpoint = Checkpoint(path=tmp_path / "file" / "run.safetensors", key="k", every=1)
    with pytest.raises(CheckpointError, match=r"run\.safetensors cannot be written: .*start again"):
        checkpoint.save(example_snapshot())


def test_only_the_writing_process_touches_the_file(saved):
    reader = Checkpoint(path=saved.path, key="mine", every=1, writes=False)
    reader.save(Snapshot(tensors={}, state={"step": 9}, records=[]))
    reader.remove()
    assert reader.load().state["step"] == 3


def test_optimiser_state_survives_with_its_types():
    for make in (torch.optim.AdamW, lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9)):
        parameters = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2, 2))]
        first = make(parameters)
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, 0.5)
        first.step()
        tensors, scalars = optimiser_snapshot(first)
        second = make(parameters)
        restore_optimiser(second, tensors, json.loads(json.dumps(scalars)))
        expected, found = first.state_dict()["state"], second.state_dict()["state"]
        assert expected.keys() == found.keys() == {0, 1}
        for index, values in expected.items():
            for name, value in values.items():
                assert torch.equal(torch.as_tensor(found[index][name]), torch.as_tensor(value)), name
