"""The tasks that README.md and docs/adding-a-task.md show are ones that params.yaml takes."""

import re
from pathlib import Path

import yaml

from pipeline.params import load


def test_the_readmes_task_loads_beside_the_demo(repo_root: Path, tmp_path: Path):
    (block,) = re.findall(r"```yaml\n(tasks:\n.*?)```", (repo_root / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    document = yaml.safe_load((repo_root / "params.yaml").read_text(encoding="utf-8"))
    document["tasks"] |= yaml.safe_load(block)["tasks"]
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    tasks = load(path)
    assert {"tweet_sentiment", "my_task"} < set(tasks)
    assert tasks["my_task"].prompt.labels == ("billing", "outage")


def test_the_documented_second_task_is_the_one_in_params_yaml(repo_root: Path):
    (block,) = re.findall(
        r"```yaml\n(tasks:\n.*?)```", (repo_root / "docs" / "adding-a-task.md").read_text(encoding="utf-8"), flags=re.DOTALL
    )
    shown = yaml.safe_load(block)["tasks"]["privacy_policy_qa"]
    sections = yaml.safe_load((repo_root / "params.yaml").read_text(encoding="utf-8"))["tasks"]["privacy_policy_qa"]
    assert shown == {name: section for name, section in sections.items() if section}
