"""Two processes learn what one process learns from the same global batch, and agree with each other bit for bit."""

import json
import socket
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from pipeline.engine.distributed import Processes, process_group
from tests.engine.tiny_training import run, tiny_learner
from tests.engine.two_processes import CASES, STEPS, parameters, train_case

ALONE = Processes(rank=0, count=1, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def folder(model_folder, tmp_path_factory, repo_root):
    """The folder in which two_processes has run."""
    folder = tmp_path_factory.mktemp("two_processes")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tests.engine.two_processes", str(model_folder("llama")), str(folder), str(port)]
    done = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def reports(folder) -> list[dict]:
    """What each of the processes says."""
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("case", list(CASES))
def test_two_processes_learn_what_one_learns_from_the_same_global_batch(tiny, folder, reports, case):
    records: list[dict] = []
    expected = parameters(train_case(tiny(), ALONE, CASES[case], on_record=records.append))
    start = {f"{index}.{name}": value for index in range(2) for name, value in tiny_learner(tiny(), 2).modules[index].state_dict().items()}
    found = load_file(folder / f"{case}.0.safetensors")
    assert found.keys() == expected.keys()
    assert len(found) == 2
    for name, value in expected.items():
        assert float((value - start[name]).abs().max()) > 0.02  # it did learn
        assert float((found[name] - value).abs().max()) <= 1e-6, name
    losses = [record["loss"] for record in records if record["event"] == "step"]
    assert len(losses) == 2 * STEPS
    assert reports[0][case]["losses"] == pytest.approx(losses, abs=1e-5)
    evaluations = [record for record in records if record["event"] == "evaluation"]
    assert len(evaluations) == 4
    for one, other in zip(reports[0][case]["evaluations"], evaluations, strict=True):
        # Sums over two processes may round otherwise, and then the hash of the parameters is another one.
        assert one | {"values_sha256": ""} == pytest.approx(other | {"values_sha256": ""}, abs=1e-5)
        assert len(one["values_sha256"]) == 64
        assert one["rows"] == 13


@pytest.mark.parametrize("case", list(CASES))
def test_both_processes_end_with_the_same_bits(reports, case):
    assert reports[0][case] == reports[1][case]


def test_a_signal_to_one_process_stops_both_and_both_go_on_from_the_first_ones_file(reports):
    for report in reports:
        assert report["stopped"]["message"].startswith("Training was asked to stop after step 6 of 10")
        assert report["stopped"]["steps"][-1] == 6
        assert report["stopped"]["files"] == ["run.safetensors", "run.safetensors.previous"]
        uninterrupted = {name: report["adamw 7"][name] for name in ("records", "best", "sha256", "ended")}
        assert report["stopped"]["resumed"] == uninterrupted


def test_all_processes_start_as_the_first_does(reports):
    assert [report["starts"] for report in reports] == [5.0, 5.0]


def test_processes_that_no_longer_agree_are_an_error(reports):
    for report in reports:
        assert report["disagreement"].startswith("The processes [1] hold other parameters than process 0")


def test_without_a_launcher_there_is_one_process_and_nothing_is_wrapped(tiny, tmp_path, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with process_group(torch.device("cpu")) as processes:
        assert processes == ALONE
        assert processes.first
        assert not torch.distributed.is_initialized()
        learner = tiny_learner(tiny())
        assert processes.learner(learner) is learner
        checkpoint = processes.checkpoint(path=tmp_path / "run.safetensors", key="k", every=1)
        run(tiny(), learner=processes.learner(learner), maximum_steps=1, checkpoint=checkpoint, stop=processes.stop(lambda: True))
        assert checkpoint.path.exists()
