"""`promptmill why`, `compare` and `evaluate` on registered versions of a real tiny model, in a registry of their own."""

import csv
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import pytest
import torch

from flows import cli
from flows.why import explain
from pipeline.gates.checks import Check
from pipeline.layout import FILES
from pipeline.records import read_json, write_json, write_parquet
from pipeline.registry.connection import connect
from tests.registry.registry_workspace import LABELS, TASK, Workspace, write_outputs

if TYPE_CHECKING:
    from pipeline.engine.predicting import Predictor

Inside = Callable[..., tuple[int, str, str]]

TEXTS = [
    f"{start} {end}"
    for start in ("thank you for", "late again,", "my bag is", "boarding at")
    for end in ("the crew", "gate four", "a lovely flight")
]
CHECK = Check(
    name="accuracy",
    verdict="PASS",
    value=0.62,
    low=0.6,
    high=0.64,
    n=1700,
    denominator="test rows",
    limit=0.55,
    method="Wilson score interval",
    rule="PASS when low >= limit",
    sentence="accuracy of the tuned prompt is 0.620.",
    more_rows=None,
)
UNDECIDED: Check = {**CHECK, "name": "recall", "verdict": "INCONCLUSIVE", "sentence": "These rows cannot decide.", "more_rows": 1200}
REASON = "recall: INCONCLUSIVE: These rows cannot decide."


def second_bundle(first: Path, folder: Path) -> Path:
    """The same tiny model with another soft prompt."""
    from pipeline.engine.soft_prompt import SoftPrompt, save_soft_prompt, tensor_sha256
    from pipeline.manifest import write_manifest

    shutil.copytree(first, folder)
    torch.manual_seed(5)
    soft_prompt = 3.0 * torch.randn(2, 32)
    save_soft_prompt(folder, soft_prompt=SoftPrompt(soft_prompt), base_model_id="tiny/llama", revision=None, init_text="Sentiment")
    (folder / "README.md").unlink(missing_ok=True)
    manifest = read_json(folder / "manifest.json")
    (folder / "manifest.json").unlink()
    kept = {key: value for key, value in manifest.items() if key not in ("files", "schema_version")}
    write_manifest(folder, {**kept, "soft_prompt": {"sha256": tensor_sha256(soft_prompt), "shape": [2, 32], "dtype": "float32"}})
    return folder


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path) -> Workspace:
    """Version 1 with one soft prompt, which the gate let pass; version 2, the newest, with another, which it leaves to a person."""
    patch = pytest.MonkeyPatch()
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        patch.delenv(name, raising=False)
    root = tmp_path_factory.mktemp("registered") / "a workspace"
    workspace = Workspace(root)
    other = second_bundle(tiny_bundle, tmp_path_factory.mktemp("other") / "bundle")
    for seed, bundle, decision, checks, reasons in (
        (1, tiny_bundle, "promote", [CHECK], []),
        (2, other, "ask", [CHECK, UNDECIDED], [REASON]),
    ):
        write_outputs(root, seed, decision)
        shutil.rmtree(workspace.layout.path("bundle"))
        shutil.copytree(bundle, workspace.layout.path("bundle"))
        write_json(workspace.layout.path("gate"), {"task": TASK, "decision": decision, "reasons": reasons, "checks": checks, "inputs": {}})
        connect(root=root, create=True)
        assert workspace.register() == seed
    patch.undo()
    return workspace


@pytest.fixture
def inside(registered: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Inside:
    """Run a command line in this process, in the workspace: exit code, stdout and stderr."""
    monkeypatch.chdir(registered.root)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(arguments)
        return code, *capsys.readouterr()

    return run


def answers(predictor: "Predictor", texts: Sequence[str]) -> list[str]:
    return [LABELS[int(row.argmax())] for row in predictor.predict([{"text": text} for text in texts])]


@pytest.fixture(scope="module")
def both(registered: Workspace) -> tuple[list[str], list[str]]:
    """What the two versions answer, from their stored bundles without the commands under test."""
    from pipeline.engine.predicting import load_predictor

    first, second = (answers(load_predictor(registered.stored_bundle(version), device="cpu"), TEXTS) for version in (1, 2))
    assert first != second
    return first, second


def write_rows(path: Path, **columns: Sequence[str]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


def test_evaluate_measures_a_version_on_rows_of_ones_own(inside: Inside, both: tuple[list[str], list[str]], tmp_path: Path) -> None:
    truth = ["neutral", *both[0][1:]]
    right = sum(a == b for a, b in zip(truth, both[0], strict=True))
    data, out = write_rows(tmp_path / "rows.csv", text=TEXTS, label=truth), tmp_path / "out.csv"
    code, said, _ = inside("evaluate", f"{TASK}@1", "--data", str(data), "--json", "--out", str(out))
    assert code == 0
    record = json.loads(said)
    assert (record["task"], record["version"], record["n"]) == (TASK, 1, len(TEXTS))
    assert record["metrics"]["accuracy"]["value"] == pytest.approx(right / len(TEXTS))
    with out.open(encoding="utf-8", newline="") as stream:
        written = list(csv.DictReader(stream))
    assert [row["prediction"] for row in written] == both[0]
    assert [row["label"] for row in written] == truth
    assert all(sum(float(row[f"p.{label}"]) for label in LABELS) == pytest.approx(1, abs=1e-5) for row in written)
    code, said, _ = inside("evaluate", f"{TASK}@1", "--data", str(data))
    assert code == 0
    assert said.startswith(f"{TASK} version 1 on {len(TEXTS)} rows of {data}")
    assert f"recall of {LABELS[0]}" in said


def test_nothing_is_registered_by_measuring(inside: Inside, registered: Workspace, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.csv", text=TEXTS[:2], label=LABELS[:2])
    before = inside("list", TASK, "--json")[1]
    runs = len(
        connect(root=registered.root).client.search_runs([connect(root=registered.root).client.get_experiment_by_name(TASK).experiment_id])
    )
    assert inside("evaluate", f"{TASK}@2", "--data", str(data))[0] == 0
    assert inside("compare", f"{TASK}@1", f"{TASK}@2", "--data", str(data))[0] == 0
    assert inside("list", TASK, "--json")[1] == before
    assert runs == len(
        connect(root=registered.root).client.search_runs([connect(root=registered.root).client.get_experiment_by_name(TASK).experiment_id])
    )


@pytest.mark.parametrize(
    ("columns", "complaint"),
    [
        ({"text": ["a"]}, "lacks the columns ['label']"),
        ({"tweet": ["a"], "label": ["neutral"]}, "lacks the columns ['text']"),
        ({"text": ["a", " "], "label": ["neutral"] * 2}, "row 2, column 'text' is empty"),
        ({"text": ["a", "b"], "label": ["neutral", "angry"]}, "row 2, column 'label' is 'angry'"),
    ],
)
def test_rows_that_cannot_be_measured_are_named(inside: Inside, tmp_path: Path, columns: dict[str, list[str]], complaint: str) -> None:
    data = write_rows(tmp_path / "rows.csv", **columns)
    code, _, err = inside("evaluate", f"{TASK}@1", "--data", str(data))
    assert code == 1
    assert complaint in err
    assert str(data) in err


def test_compare_counts_who_is_right_where(inside: Inside, both: tuple[list[str], list[str]], tmp_path: Path) -> None:
    truth = both[0]
    data = write_rows(tmp_path / "rows.csv", text=TEXTS, label=truth)
    code, said, _ = inside("compare", f"{TASK}@1", f"{TASK}@2", "--data", str(data), "--json")
    assert code == 0
    record = json.loads(said)
    agree = sum(a == b for a, b in zip(*both, strict=True))
    assert record["names"] == {"first": f"{TASK} version 1", "second": f"{TASK} version 2"}
    assert (record["both_right"], record["only_first_right"]) == (agree, len(TEXTS) - agree)
    assert (record["only_second_right"], record["both_wrong"]) == (0, 0)
    assert record["difference"]["accuracy"]["value"] == pytest.approx(1 - agree / len(TEXTS))
    assert record["p_value"] == pytest.approx(2 * 0.5 ** (len(TEXTS) - agree))
    assert all(one["first"] == one["label"] != one["second"] for one in record["examples"]["only_first_right"])
    code, said, _ = inside("compare", f"{TASK}@2", f"{TASK}@1", "--data", str(data))
    assert f"Only {TASK} version 1 is right on {len(TEXTS) - agree} rows" in said


def test_compare_takes_the_test_split_and_answers_from_a_file(
    inside: Inside, registered: Workspace, both: tuple[list[str], list[str]], tmp_path: Path
) -> None:
    frame = pd.DataFrame({"row_id": [str(number) for number in range(len(TEXTS))], "text": TEXTS, "label": both[1]})
    write_parquet(registered.layout.path("test"), frame)
    split = json.loads(inside("compare", f"{TASK}@2", f"{TASK}@1", "--json")[1])
    theirs = write_rows(tmp_path / "theirs.csv", text=TEXTS, label=both[1], prediction=both[0])
    code, said, _ = inside("compare", f"{TASK}@2", str(theirs), "--json")
    assert code == 0
    record = json.loads(said)
    assert record["names"]["second"] == str(theirs)
    assert {key: value for key, value in record.items() if key not in ("names", "data")} == {
        key: value for key, value in split.items() if key not in ("names", "data")
    }
    code, _, err = inside("compare", f"{TASK}@2", str(theirs), "--data", str(theirs))
    assert code == 1
    assert "Leave one of them out" in err
    bad = write_rows(tmp_path / "bad.csv", text=["a"], label=["neutral"], prediction=["angry"])
    assert "column 'prediction' is 'angry'" in inside("compare", f"{TASK}@2", str(bad))[2]
    same = inside("compare", f"{TASK}@2", f"{TASK}@2")[1]
    assert "SAME: they are right on the same rows." in same


def test_why_gives_the_decision_of_the_newest_version(inside: Inside) -> None:
    code, said, _ = inside("why", TASK)
    assert code == 0
    lines = said.splitlines()
    assert lines[:2] == [
        f"{TASK} version 2 (challenger): the gate left it to a person: no check failed, and these rows could not decide all of them.",
        "2 checks: 1 PASS, 1 INCONCLUSIVE.",
    ]
    assert lines[3:6] == ["INCONCLUSIVE  recall", "  These rows cannot decide.", "  Rule: PASS when low >= limit."]
    assert "  recall: about 1,200 more rows, if the rates stay as they are." in lines
    assert "accuracy  0.62   0.6 to 0.64  0.55   1700" in lines
    assert inside("why", f"{TASK}@1")[1].startswith(f"{TASK} version 1: the gate let it pass: every check passed.")
    assert json.loads(inside("why", f"{TASK}@1", "--json")[1])["checks"] == [CHECK]


def test_a_reason_of_no_check_and_a_failure_are_explained() -> None:
    version = {"task": TASK, "version": 3, "aliases": []}
    failed: Check = {**CHECK, "verdict": "FAIL", "value": 0.5}
    text = explain(version, {"decision": "refuse", "reasons": ["There are no checks."], "checks": []})
    assert "0 checks: none, and without checks nothing is promoted.\n  There are no checks." in text
    text = explain(version, {"decision": "refuse", "reasons": [], "checks": [failed, {**CHECK, "verdict": "MISSING", "value": None}]})
    assert "accuracy: the value is 0.5, the limit 0.55." in text
    assert "run the stage that writes it again" in text


def test_an_altered_gate_record_is_refused(inside: Inside, registered: Workspace) -> None:
    run = json.loads(inside("show", f"{TASK}@1", "--json")[1])["run_id"]
    (path,) = registered.artifacts.rglob(f"{run}/artifacts/{Path(FILES['gate'].format(task=TASK)).name}")
    kept = path.read_text(encoding="utf-8")
    path.write_text(kept.replace("0.55", "0.54"), encoding="utf-8")
    code, _, err = inside("why", f"{TASK}@1")
    path.write_text(kept, encoding="utf-8")
    assert code == 1
    assert "was altered in the store" in err


@pytest.mark.parametrize(
    "arguments", [("why", "nothing"), ("why", f"{TASK}@9"), ("compare", f"{TASK}@1", f"{TASK}@9"), ("compare", f"{TASK}@1", "../x")]
)
def test_an_unknown_version_is_named(inside: Inside, arguments: tuple[str, ...]) -> None:
    code, _, err = inside(*arguments)
    assert code == 1
    assert "has no version 9" in err or "'../x' names no task" in err or "Nothing is registered under 'nothing'" in err


def test_the_usage_of_each_is_documented(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("why", "compare", "evaluate"):
        with pytest.raises(SystemExit) as done:
            cli.main([command, "--help"])
        assert done.value.code == 0
        assert f"promptmill {command} tweet_sentiment" in capsys.readouterr().out
