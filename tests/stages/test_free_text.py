"""A task with free-text targets ends at the split, with a reason, before a model is loaded."""

import json
from pathlib import Path

import pytest

from pipeline.errors import ParamsError
from pipeline.layout import Layout, stage_named
from pipeline.params import TaskParams, load
from pipeline.stages import tune


def test_tune_refuses_free_text(repo_root: Path, tmp_path: Path):
    values = load(repo_root / "params.yaml")["tweet_sentiment"].model_dump(by_alias=True)
    values["ingest"]["columns"] = {"fields": {"text": "text"}, "target": "answer"}
    values["prompt"]["verbalizers"] = {}
    params = TaskParams.model_validate(json.loads(json.dumps(values)))
    layout = Layout(tmp_path, "tweet_sentiment")
    with pytest.raises(ParamsError, match=r"free-text targets \(ingest.columns.target\).*serve labels only"):
        tune.run(params=params, inputs=layout.inputs(stage_named("tune")), outputs=layout.outputs(stage_named("tune")))
    assert list(tmp_path.iterdir()) == []
