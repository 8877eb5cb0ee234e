"""Each part on a tiny model: arms agree where they must, goals are judged the right way round, results are written and read back."""

import argparse
import json

import pytest
import torch

from benchmarks import __main__ as benchmarks_main
from benchmarks import evaluation, quality, training, trials
from benchmarks.arms import ARMS, ENGINE, TRAINER, Task
from benchmarks.drawing import Panel
from benchmarks.measuring import goal, spread, take_turns
from benchmarks.memory import MemoryCase, peak_memory
from benchmarks.recording import write_results
from pipeline.engine.template import Verbalizers

PLAN = trials.Plan(learning_rates=(0.01, 0.05), seeds=(0, 1), num_virtual_tokens=3, batch_size=8, steps=4, evaluate_every=1)


def test_turns_rotate_and_every_arm_gets_as_many():
    calls = []
    found = take_turns({name: (lambda name=name: calls.append(name) or len(calls)) for name in "abc"}, 3)
    assert calls == [*"abc", *"bca", *"cab"]
    assert {name: len(values) for name, values in found.items()} == {"a": 3, "b": 3, "c": 3}
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "minimum": 1.0, "maximum": 3.0, "values": [3.0, 1.0, 2.0]}


@pytest.mark.parametrize(("value", "at_least", "reached"), [(2.9, True, False), (3.0, True, True), (3.1, False, False), (0.4, False, True)])
def test_a_goal_is_judged_in_its_direction(value, at_least, reached):
    assert goal("speed", value, 3.0, at_least=at_least)["reached"] is reached


def test_training_part_gives_a_row_per_arm_and_ratios_of_medians(task, examples):
    arms = {name: ARMS[name] for name in (TRAINER, ENGINE)}
    rows = training.speed_rows(task, examples, arms, num_virtual_tokens=20, batch_size=8, steps=2, repetitions=2)
    assert [row["arm"] for row in rows] == [TRAINER, ENGINE]
    assert all(len(row["examples_per_second"]["values"]) == 2 for row in rows)
    rows = [{"texts": "tweets", "num_virtual_tokens": 20, "dtype": "float32", **row, "peak_mebibytes": spread([4.0])} for row in rows]
    rows[1]["peak_mebibytes"] = spread([1.0])
    speed, memory, *_ = training.goals(rows, [])
    assert speed["value"] == rows[1]["examples_per_second"]["median"] / rows[0]["examples_per_second"]["median"]
    assert speed["limit"] == 3.0
    assert (memory["value"], memory["reached"]) == (0.25, True)
    assert len(training.panels(rows)) == 2


def test_training_keeps_the_cells_that_a_call_does_not_measure_on_the_same_machine_alone(tmp_path):
    row = {"arm": ENGINE, "examples_per_second": spread([1.0]), "mean_length": 3.0, "mean_padded_length": 4.0}
    rows = [{"texts": "tweets", "num_virtual_tokens": count, "dtype": "float32", **row} for count in (20, 100)]
    gradients = [{"num_virtual_tokens": 20, "method": "prompt_tuning", "relative_error": 1e-6}]
    common = {"title": "t", "device": torch.device("cpu"), "settings": {}, "tables": [], "panels": [], "columns": 1}
    write_results("training", found={"rows": rows, "gradients": gradients}, folder=tmp_path, **common)
    options = argparse.Namespace(texts=["tweets"], virtual_tokens=[100], dtypes=["float32"])
    path = tmp_path / "training.json"
    assert training.kept(path, options) == (rows[:1], gradients)
    record = json.loads(path.read_text())
    record["machine"]["libraries"]["torch"] = "0.1"
    path.write_text(json.dumps(record))
    with pytest.raises(SystemExit, match="another machine"):
        training.kept(path, options)


@pytest.mark.slow
def test_memory_is_measured_in_a_process_of_its_own_and_grows_with_the_batch(tiny_folder, task, examples):
    def peak(batch):
        return peak_memory(
            MemoryCase(
                arm=TRAINER,
                source={"kind": "directory", "id": "tiny", "path": str(tiny_folder)},
                dtype="float32",
                head=task.head,
                verbalizers=task.verbalizers,
                num_virtual_tokens=40,
                batches=[batch],
            )
        )

    assert peak(examples * 32) > peak(examples[:8]) + 20 * 2**20


@pytest.mark.parametrize("count", [4, 30])
def test_labels_and_texts_are_pefts_own(task, examples, count):
    ranking = evaluation.ranking_row(task, examples[:20], num_virtual_tokens=count, batch_size=8, repetitions=1)
    assert ranking["answers_unlike_the_engines"] == {evaluation.FORWARD: 0, evaluation.SORTED: 0, evaluation.ENGINE: 0}
    decoding = evaluation.decoding_row(task, examples[:6], num_virtual_tokens=count, batch_size=4, new_tokens=3, repetitions=1)
    assert decoding["answers_unlike_the_engines"][evaluation.ONE_BY_ONE] == 0
    by_goal = {
        goal["goal"]: goal["reached"] for goal in evaluation.goals([{"dtype": "float32", **ranking}, {"dtype": "float32", **decoding}])
    }
    assert len(by_goal) == 2
    assert all(by_goal.values())


def test_trials_lose_the_same_together_and_alone_and_halving_saves_steps(task, examples):
    found = trials.compare(task, PLAN, examples[:32], examples[32:], 1)
    assert found["largest_loss_difference"] <= 1e-4
    assert found["trial_steps"] == {trials.ONE_BY_ONE: 16, trials.TOGETHER: 16, trials.HALVING: 4 + 2 + 1 + 1}
    assert found["best_trial"][trials.ONE_BY_ONE] == found["best_trial"][trials.TOGETHER]
    assert len(trials.goals(found, "cpu", "float32")) == 4
    assert len(trials.goals(found, "cpu", "bfloat16")) == 3


def run_of(side, init, rate, seed, validation, test):
    judged = [{"accuracy": value, "macro_f1": value, "loss": 1.0} for value in (validation, test)]
    return {"side": side, "init": init, "learning_rate": rate, "seed": seed, "validation": judged[0], "test": judged[1]}


def test_quality_chooses_pefts_best_by_validation_and_says_what_the_luckiest_had():
    runs = [
        run_of(quality.ENGINE, "text", 0.005, 0, 0.7, 0.65),
        run_of(quality.PEFT, "RANDOM", 5e-5, 0, 0.3, 0.4),
        run_of(quality.PEFT, "TEXT", 0.01, 0, 0.6, 0.6),
        run_of(quality.PEFT, "TEXT", 0.03, 0, 0.5, 0.7),
    ]
    gains = {line["goal"]: (round(line["value"], 6), line["reached"]) for line in quality.goals(quality.summarise(runs))}
    assert gains == {
        "test accuracy gained over PEFT's best by validation (PEFT + Trainer, TEXT, 0.01)": (0.05, True),
        "test accuracy gained over PEFT's best by test (PEFT + Trainer, TEXT, 0.03)": (-0.05, False),
        "test accuracy gained over PEFT's defaults (PEFT + Trainer, RANDOM, 5e-05)": (0.25, True),
    }


@pytest.mark.parametrize("name", ["training", "evaluation", "trials", "quality"])
def test_command_lines_have_their_defaults(name):
    module = {"training": training, "evaluation": evaluation, "trials": trials, "quality": quality}[name]
    options = module.make_parser().parse_args(["--repetitions", "2"])
    assert isinstance(options, argparse.Namespace)
    assert options.repetitions == 2


def test_results_name_the_machine_the_code_and_the_day(tmp_path):
    bars = {"engine": spread([1.0, 2.0]), "PEFT": spread([0.5])}
    write_results(
        "speed",
        title="Speed",
        device=torch.device("cpu"),
        settings={"steps": 2},
        found={"rows": [bars]},
        tables=["| a |\n| --- |\n"],
        panels=[Panel("one", "examples/s", bars)] * 3,
        columns=2,
        folder=tmp_path,
    )
    record = json.loads((tmp_path / "speed.json").read_text())
    assert record["machine"]["libraries"]["torch"] == torch.__version__
    assert record["machine"]["cores"] >= record["machine"]["cores_allowed"] >= 1
    assert set(record) == {"benchmark", "date", "code", "machine", "settings", "rows"}
    assert (tmp_path / "speed.md").read_text().startswith("# Speed\n")
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")


def test_a_task_with_longer_verbalizers_is_refused(task):
    with pytest.raises(ValueError, match="one token per label"):
        Task(task.base, (), Verbalizers(("a", "b"), ((1, 2), (3,))))


def test_the_one_command_gives_every_part_the_options_they_share_and_leaves_it_its_own(monkeypatch, tmp_path):
    given = {}
    for name, part in benchmarks_main.PARTS.items():
        monkeypatch.setattr(part, "run", lambda options, name=name: given.update({name: options}))
    monkeypatch.setattr("sys.argv", ["benchmarks", "--repetitions", "5", "--output", str(tmp_path)])
    benchmarks_main.main()
    assert list(given) == ["training", "evaluation", "trials", "quality"]
    assert {(options.repetitions, options.output) for options in given.values()} == {(5, tmp_path)}
    assert given["training"].virtual_tokens == [20, 100]
    given.clear()
    monkeypatch.setattr("sys.argv", ["benchmarks", "quality"])
    benchmarks_main.main()
    assert list(given) == ["quality"]
    assert given["quality"].repetitions == 1
