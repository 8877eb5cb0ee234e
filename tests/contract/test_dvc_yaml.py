"""dvc.yaml, the layout, the params and the imports of the stages describe one pipeline."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grimp
import pytest
from ruamel.yaml import YAML

from pipeline import dvc_file
from pipeline.errors import WorkspaceError
from pipeline.layout import FILES, FLOW_SECTIONS, STAGES, Layout, Stage
from pipeline.params import SECTIONS

TASKS = ("tweet_sentiment", "second-task")
REWRITE = "Run `python -m pipeline.dvc_file` and commit dvc.yaml."
STAGE_NAMES = [stage.name for stage in STAGES]


@pytest.fixture(scope="module")
def imports() -> grimp.ImportGraph:
    """The import graph by grimp, which import-linter uses: an oracle that shares no code with pipeline.dvc_file."""
    return grimp.build_graph("pipeline", cache_dir=None)


def _packages(modules: set[str]) -> set[str]:
    return {".".join(parts[:end]) for parts in (module.split(".") for module in modules) for end in range(1, len(parts))}


def _closure(imports: grimp.ImportGraph, stage: Stage) -> set[str]:
    modules = {"pipeline.__main__", f"pipeline.stages.{stage.name}"}
    while True:
        wider = modules | _packages(modules) | {upstream for module in modules for upstream in imports.find_upstream_modules(module)}
        if wider == modules:
            return modules
        modules = wider


def _file(root: Path, module: str) -> str:
    base = module.replace(".", "/")
    return f"{base}/__init__.py" if (root / base).is_dir() else f"{base}.py"


def _package_data(modules: set[str]) -> set[str]:
    parts = (
        "behaviour",
        "champion",
        "changes",
        "curve",
        "data",
        "drift",
        "expectations",
        "forest",
        "gate",
        "head",
        "lineage",
        "macros",
        "reliability",
        "trials",
        "verdict",
        "virtual_tokens",
        "worth",
    )
    names = ["card.css", "card.html.jinja", "model_card.md.jinja", "text_card.html.jinja", *(f"card_{part}.html.jinja" for part in parts)]
    return {f"pipeline/reporting/{name}" for name in names} if "pipeline.reporting" in modules else set()


def test_the_committed_file_is_what_the_code_renders(repo_root: Path):
    committed = (repo_root / "dvc.yaml").read_text(encoding="utf-8")
    assert committed == dvc_file.render(repo_root), REWRITE


@pytest.mark.parametrize("stage", STAGES, ids=STAGE_NAMES)
def test_code_dependencies_are_exactly_what_the_stage_imports(
    repo_root: Path, stages_in_file: dict[str, Any], imports: grimp.ImportGraph, stage: Stage
):
    modules = _closure(imports, stage)
    expected = {_file(repo_root, module) for module in modules} | _package_data(modules)
    listed = [path for path in stages_in_file[stage.name]["do"]["deps"] if path.startswith("pipeline/")]
    assert set(listed) == expected, f"add {sorted(expected - set(listed))}, remove {sorted(set(listed) - expected)}. {REWRITE}"
    assert len(listed) == len(expected) >= 8
    assert [path for path in listed if not (repo_root / path).is_file()] == []


def test_every_file_of_the_library_is_a_module_or_declared_package_data(repo_root: Path, imports: grimp.ImportGraph):
    package = repo_root / "pipeline"
    present = {p.relative_to(repo_root).as_posix() for p in package.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    known = {_file(repo_root, module) for module in imports.modules} | _package_data(imports.modules)
    assert present == known, f"not part of the installed package: {sorted(present - known)}; missing: {sorted(known - present)}"


def test_there_is_one_unit_for_each_stage_and_task(stages_in_file: dict[str, Any], workspace: Path):
    from dvc.repo import Repo

    assert list(stages_in_file) == STAGE_NAMES
    with Repo(str(workspace)) as repo:
        units = [unit.name for unit in repo.index.stages]
    assert sorted(units) == sorted(f"{name}@{task}" for name in STAGE_NAMES for task in TASKS)
    assert len(units) == 17 * len(TASKS)


def _with_checksums(layout: Layout, names: Sequence[str]) -> list[Path]:
    """The files of these names as DVC must track them, each Parquet file followed by its checksum."""
    paths = [layout.path(name) for name in names]
    return [Path(f"{path}{suffix}") for path in paths for suffix in (("", ".sha256") if path.suffix == ".parquet" else ("",))]


@pytest.mark.parametrize("task", TASKS)
def test_dvc_sees_the_command_files_and_params_of_the_layout(workspace: Path, task: str):
    from dvc.dependency.param import ParamsDependency
    from dvc.repo import Repo

    layout, compared = Layout(workspace, task), 0
    with Repo(str(workspace)) as repo:
        for stage in STAGES:
            (unit,) = (unit for unit in repo.index.stages if unit.name == f"{stage.name}@{task}")
            data = [Path(dep.fs_path) for dep in unit.deps if not isinstance(dep, ParamsDependency) and "pipeline" not in dep.def_path]
            (params,) = (dep for dep in unit.deps if isinstance(dep, ParamsDependency))
            assert unit.cmd == f"python -m pipeline {stage.name} --task {task}"
            assert data == _with_checksums(layout, stage.inputs)
            assert sorted(Path(out.fs_path) for out in unit.outs) == sorted(_with_checksums(layout, stage.outputs))
            assert all(out.use_cache for out in unit.outs)
            assert sorted(params.params) == sorted(
                f"{side}.{section}" for section in stage.sections for side in ("defaults", f"tasks.{task}")
            )
            assert len(params.read_params()) == 2 * len(stage.sections), "a section that DVC cannot find is not tracked"
            compared += 1
    assert compared == len(STAGES)


def test_metrics_and_plots_are_what_dvc_shows(workspace: Path):
    from dvc.repo import Repo

    with Repo(str(workspace)) as repo:
        metrics = [out.def_path for unit in repo.index.stages for out in unit.outs if out.metric]
        plots = [out.def_path for unit in repo.index.stages for out in unit.outs if out.plot]
    assert sorted(metrics) == sorted(f"reports/{task}/metrics.json" for task in TASKS)
    assert sorted(plots) == sorted(f"reports/{task}/{folder}" for task in TASKS for folder in ("plots", "pictures"))


def test_the_layout_and_the_params_name_the_same_sections():
    of_stages = {section for stage in STAGES for section in stage.sections}
    assert of_stages | set(FLOW_SECTIONS) == set(SECTIONS)
    assert not of_stages & set(FLOW_SECTIONS)
    # What is asked is what is assessed, and the champion is scored as the candidate is.
    shared = {"tune_lora": "lora_baseline", "probe": "behaviour", "assess_behaviour": "behaviour", "score_champion": "score"}
    own = [stage.name for stage in STAGES if shared.get(stage.name, stage.name) in stage.sections]
    assert own == STAGE_NAMES
    assert all(stage.sections[0] == shared.get(stage.name, stage.name) for stage in STAGES)
    assert len(SECTIONS) == len(set(SECTIONS)) == 20


def test_each_file_is_written_by_one_stage_before_it_is_read():
    written: set[str] = set()
    for stage in STAGES:
        assert set(stage.inputs) <= written, f"{stage.name} reads what no earlier stage writes: {set(stage.inputs) - written}"
        assert not set(stage.outputs) & written, f"{stage.name} writes what an earlier stage has written"
        written |= set(stage.outputs)
    assert written == set(FILES)
    assert len(set(FILES.values())) == len(FILES)


def _downstream(name: str) -> list[str]:
    """The stages that read this file, or what those write, and so on."""
    found: list[str] = []
    files = {name}
    for stage in STAGES:
        if files & set(stage.inputs):
            found.append(stage.name)
            files |= set(stage.outputs)
    return found


def test_what_the_registry_says_reaches_no_training():
    """Every registered version changes `attempts`: a stage that trains or scores behind it would make the next version by itself."""
    assert _downstream("attempts") == ["compare", "gate", "report"]
    assert not {"tune", "tune_lora", "score", "evaluate", "probe"} & {*_downstream("champion"), *_downstream("reference")}
    assert {"score_champion", "compare", "assess_fairness"} <= set(_downstream("champion"))


def test_no_output_lies_inside_another_or_belongs_to_two_tasks(tmp_path: Path):
    paths = [Layout(tmp_path, task).path(name) for task in TASKS for name in FILES]
    assert len(set(paths)) == len(FILES) * len(TASKS)
    assert [(a, b) for a in paths for b in paths if a in b.parents] == []


def test_each_file_is_described_for_people(repo_root: Path):
    text = (repo_root / "docs" / "stage-files.md").read_text(encoding="utf-8")
    assert [name for name in FILES if f"`{name}`" not in text and f"`{name}/" not in text] == []


def test_a_stage_without_a_module_is_named(tmp_path: Path):
    with pytest.raises(WorkspaceError, match=r"Stage ingest has no module pipeline\.stages\.ingest"):
        dvc_file.render(tmp_path)


FORMS = {
    "import pipeline.a": {"pipeline.a"},
    "import pipeline.a as b, os": {"pipeline.a"},
    "from pipeline import a": {"pipeline.a"},
    "from pipeline.a import CONSTANT": {"pipeline.a"},
    "from pipeline.sub import c": {"pipeline.sub", "pipeline.sub.c", "pipeline.a"},
    "from pipeline.sub.c import *": {"pipeline.sub", "pipeline.sub.c", "pipeline.a"},
    "from . import a": {"pipeline.a"},
    "from .sub.c import x": {"pipeline.sub", "pipeline.sub.c", "pipeline.a"},
    "def f():\n    if True:\n        from pipeline import a": {"pipeline.a"},
    "try:\n    import pipeline.a\nexcept ImportError:\n    pass": {"pipeline.a"},
    "import json": set[str](),
    "# import pipeline.a": set[str](),
}


@pytest.mark.parametrize(("text", "more"), FORMS.items(), ids=list(FORMS))
def test_every_form_of_import_is_followed(tmp_path: Path, text: str, more: set[str]):
    for name, content in {"__init__": "", "a": "", "sub/__init__": "", "sub/c": "from .. import a", "entry": text}.items():
        path = tmp_path / "pipeline" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert set(dvc_file.import_closure(tmp_path, ("pipeline.entry",))) == {"pipeline", "pipeline.entry"} | more


def _write_outputs(root: Path) -> None:
    for task in TASKS:
        for path in _with_checksums(Layout(root, task), list(FILES)):
            file = path / "file" if path.suffix == "" else path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{path.name} of {task}")


def _changed_params(root: Path) -> dict[str, set[str]]:
    """Unit -> the changed params for which DVC would run it again."""
    from dvc.dependency.param import ParamsDependency
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        units = {unit.name: dep for unit in repo.index.stages for dep in unit.deps if isinstance(dep, ParamsDependency)}
        return {name: set(dep.workspace_status().get("params.yaml", ())) for name, dep in units.items()}


def test_a_changed_section_makes_exactly_the_stages_that_declare_it_stale(workspace: Path, monkeypatch: pytest.MonkeyPatch):
    from dvc.repo import Repo

    monkeypatch.chdir(workspace)  # DVC's run cache resolves paths against the current folder
    yaml = YAML(typ="safe")
    original = (workspace / "params.yaml").read_text(encoding="utf-8")
    _write_outputs(workspace)
    with Repo(str(workspace)) as repo:
        repo.commit(force=True)
        assert repo.status() == {}
    params = yaml.load(original)
    for section in SECTIONS:
        params["defaults"][section]["changed"] = params["tasks"][TASKS[1]][section]["changed"] = 1
    with (workspace / "params.yaml").open("w", encoding="utf-8") as stream:
        yaml.dump(params, stream)
    assert _changed_params(workspace) == {
        f"{stage.name}@{task}": {f"{side}.{section}" for section in stage.sections for side in sides}
        for stage in STAGES
        for task, sides in zip(TASKS, (["defaults"], ["defaults", f"tasks.{TASKS[1]}"]), strict=True)
    }
    (workspace / "params.yaml").write_text(original, encoding="utf-8")
    assert set(map(len, _changed_params(workspace).values())) == {0}
