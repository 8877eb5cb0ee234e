"""Whether a tuned prompt's base model is still the one it was tuned on, and naming another one in params.yaml.

DVC watches params.yaml, and not the files of a package or folder.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.engine.model_files import weights_sha256
from pipeline.errors import StageInputError
from pipeline.layout import STAGES, Layout
from pipeline.params import TaskParams
from pipeline.params_file import read_yaml, replace_source_in
from pipeline.records import read_json

SECTION = "base_model"
STAGES_ON_IT = tuple(stage.name for stage in STAGES if SECTION in stage.sections)


def base_model_changed(root: Path, task: str, params: TaskParams) -> bool:
    """Whether the present bundle was tuned on other weights than its source holds now; False when there is no bundle, or the source is another.

    Another source stands in params.yaml, so DVC sees it. Raises BaseModelError when the base model is not to be found.
    """
    try:
        recorded = read_json(Layout(root, task).path("bundle") / "manifest.json").get("base_model", {})
    except StageInputError:
        return False
    return recorded.get("source") == params.base_model.source.model_dump() and why_other(recorded, params, root) is not None


def why_other(recorded: Mapping[str, Any], params: TaskParams, root: Path) -> str | None:
    """Why the base model of a manifest is not the one that params.yaml names now, or None; raises BaseModelError when that is not to be found."""
    source = params.base_model.source.model_dump()
    if recorded.get("source") != source:
        return f"params.yaml names {source['id']}, it was tuned on {recorded.get('id')} (or the same from another place)"
    found = weights_sha256(source, root=root)
    if found is not None and found != recorded.get("weights_sha256"):
        return f"the weights of {source['id']} have sha256 {found[:12]}, it was tuned on {str(recorded.get('weights_sha256'))[:12]}"
    return None


def with_base_model(path: Path, source: Mapping[str, str], tasks: Sequence[str] | None = None) -> str:
    """The text of params.yaml with this base model for `tasks`, or wherever one is named for all of them (None); every other line stays. Raises ParamsError."""
    document: Any = read_yaml(path)
    text = path.read_text(encoding="utf-8")
    sections = [("tasks", task, SECTION) for task in tasks or ()]
    if tasks is None:
        named = [task for task, own in document["tasks"].items() if "source" in (own.get(SECTION) or {})]
        sections = [("defaults", SECTION), *(("tasks", task, SECTION) for task in named)]
    for section in sections:
        text = replace_source_in(text, section, source)
    return text
