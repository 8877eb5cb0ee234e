"""The GPU script on a tiny model: every part runs or says why not, and the script imports where only torch's family is installed."""

import json
import subprocess
import sys

import pytest

from benchmarks import gpu
from benchmarks.arms import ENGINE, ENGINE_PREFIX, PREFIX, TRAINER

TINY = [
    *[
        "--shape",
        "tiny",
        "--device",
        "cpu",
        "--dtype",
        "float32",
        "--examples",
        "72",
        "--repetitions",
        "1",
        "--steps",
        "1",
        "--batch-sizes",
        "8",
        "--virtual-tokens",
        "3",
    ]
]
SIZES = [
    *[
        "--texts",
        "tweets",
        "--prompts",
        "4",
        "--new-tokens",
        "2",
        "--trial-steps",
        "1",
        "--compile-backend",
        "eager",
        "--out-of-memory-batch",
        "12",
    ]
]
ABSENT = ("pandas", "pydantic", "mlflow", "prefect", "dvc", "great_expectations", "fairlearn", "ruamel", "sklearn", "datasets")


def test_every_part_writes_what_it_found(tmp_path):
    parts = ["gradient", "trials", "out_of_memory", "packing"]
    gpu.run(gpu.make_parser().parse_args([*TINY, *SIZES, "--output", str(tmp_path), "--parts", *parts]))
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert all("error" not in record[part] for part in parts if part != "packing")
    assert "flex_attention" in record["packing"]["error"], "a CPU cannot train with this kernel"
    assert max(row["relative_error"] for row in record["gradient"]["rows"]) <= 1e-5
    assert record["out_of_memory"]["rows_at_once"] == 3  # of 12; 4 fit
    assert record["out_of_memory"]["gradient_difference"] <= 1e-5
    assert len(record["goals"]) == 2 + 4 + 1
    assert "part that failed" in (tmp_path / "gpu.md").read_text()


def test_tokens_of_a_step_count_what_each_side_must_run():
    sizes = {"mean_length": 30.0, "num_virtual_tokens": 100, "batch_size": 16, "head": 3}
    assert gpu.tokens_of_a_step(ENGINE, **sizes) == 100 + 3 + 16 * 30
    assert gpu.tokens_of_a_step(ENGINE_PREFIX, **sizes) == 3 + 16 * 30
    assert gpu.tokens_of_a_step(TRAINER, **sizes) == 16 * (100 + 3 + 30 + 1)
    assert gpu.tokens_of_a_step(PREFIX, **sizes) == 16 * (3 + 30 + 1)


def test_layer_parameters_leave_out_the_embedding_table():
    bench = gpu.make_bench(gpu.make_parser().parse_args([*TINY, *SIZES]))
    everything = sum(parameter.numel() for parameter in bench.base.model.parameters())
    final_norm = bench.base.hidden_size
    assert gpu.layer_parameters(bench.base) == everything - bench.base.vocabulary_embeddings().numel() - final_norm


def test_random_texts_have_the_lengths_they_promise():
    lengths = sorted(len(example.token_ids) - 2 for example in gpu.random_texts("tweets", 2000, 1000))
    assert lengths[1000] == pytest.approx(33, abs=2)
    assert lengths[1900] == pytest.approx(57, abs=4)
    assert lengths[-1] <= 128
    longer = [len(example.token_ids) for example in gpu.random_texts("longer texts", 500, 1000)]
    assert min(longer) >= 100
    assert max(longer) <= 300


@pytest.mark.slow
def test_the_script_imports_with_torchs_family_alone(repo_root):
    # transformers asks find_spec what is there: a package that is only hidden from import would count as installed.
    code = f"""
import importlib.util, sys
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name.split(".")[0] in {ABSENT!r} else found(name, package)
for name in {ABSENT!r}:
    sys.modules[name] = None
import benchmarks.gpu
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=repo_root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
