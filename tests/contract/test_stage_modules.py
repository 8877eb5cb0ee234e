"""A stage uses exactly the params sections, inputs and outputs that the layout declares for it, and so DVC knows."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.layout import FILES, STAGES, Stage
from pipeline.params import SECTIONS

STAGE_NAMES = [stage.name for stage in STAGES]
# The names of the fields are the columns of every table from `raw` on, in their order: a change of them changes those files.
CARRIED_BY_DATA = "params.ingest.columns.fields"
# Where and in how many processes a stage runs decides the rounding of sums and nothing else, and the manifest says it: a change of it makes nothing stale.
HOW_IT_RUNS = "params.execution"


def _function(tree: ast.Module, name: str) -> ast.FunctionDef | None:
    return next((node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name), None)


def _origins(tree: ast.Module) -> dict[str, str]:
    """Imported name -> the first-party module it comes from."""
    imports = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom))
    return {alias.asname or alias.name: node.module for node in imports if node.module for alias in node.names}


def _uses(root: Path, module: str, name: str, variable: str, done: set[tuple[str, str]]) -> Iterator[str]:
    """What function `name` takes from its argument `variable`: attributes, and constants it gives to a call along with it.

    A function that is handed the whole `variable` is followed, into its own module if need be.
    """
    tree = ast.parse((root / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))
    function = _function(tree, name)
    if function is None and name in (origins := _origins(tree)) and origins[name].startswith("pipeline."):
        yield from _uses(root, origins[name], name, variable, done)
        return
    if function is None or (module, name) in done:
        return
    done.add((module, name))
    assert variable in {argument.arg for argument in (*function.args.args, *function.args.kwonlyargs)}, (
        f"{module}.{name} renames {variable}"
    )
    for statement in ast.walk(function):
        if isinstance(statement, ast.Attribute) and isinstance(statement.value, ast.Name) and statement.value.id == variable:
            yield ast.unparse(_outermost(function, statement)) if statement.attr == "ingest" else f"{variable}.{statement.attr}"
        elif isinstance(statement, ast.Call):
            handed = [*statement.args, *(keyword.value for keyword in statement.keywords)]
            if any(isinstance(argument, ast.Name) and argument.id == variable for argument in handed):
                callee = statement.func.id if isinstance(statement.func, ast.Name) else ast.unparse(statement.func)
                yield from (f"{variable}.{word}" for word in _words(function, statement, callee))
                yield from _uses(root, module, callee, variable, done)


def _words(function: ast.FunctionDef, call: ast.Call, callee: str) -> Iterator[str]:
    """Names of sections or files given as text: `_typed(Gate, inputs, "gate")`, `getattr(params, name) for name in (...)`."""
    around = (
        node for node in ast.walk(function) if isinstance(node, ast.DictComp | ast.ListComp | ast.GeneratorExp) and call in ast.walk(node)
    )
    scope = next(around, call) if callee == "getattr" else call
    for node in ast.walk(scope):
        if isinstance(node, ast.Constant) and node.value in (*SECTIONS, *FILES):
            yield str(node.value)


def _outermost(function: ast.FunctionDef, attribute: ast.Attribute) -> ast.Attribute:
    """The longest chain of attributes that starts with `attribute`, without a method called on it."""
    called = {id(node.func) for node in ast.walk(function) if isinstance(node, ast.Call)}
    parents = {id(node.value): node for node in ast.walk(function) if isinstance(node, ast.Attribute) and id(node) not in called}
    while id(attribute) in parents:
        attribute = parents[id(attribute)]
    return attribute


def _used(root: Path, stage: Stage, variable: str) -> set[str]:
    found = set(_uses(root, f"pipeline.stages.{stage.name}", "run", variable, set()))
    return {name.removeprefix(f"{variable}.").replace("validate_", "validate") for name in found}


@pytest.mark.parametrize("stage", STAGES, ids=STAGE_NAMES)
def test_a_stage_uses_exactly_its_params_sections(repo_root: Path, stage: Stage):
    used = _used(repo_root, stage, "params")
    if stage.name == "ingest":
        used = {name.split(".")[0] for name in used}
    elsewhere = {name.removeprefix("params.") for name in (CARRIED_BY_DATA, HOW_IT_RUNS)}
    assert used - elsewhere == set(stage.sections), f"declared {sorted(stage.sections)}, used {sorted(used)}"


@pytest.mark.parametrize("side", ["inputs", "outputs"])
@pytest.mark.parametrize("stage", STAGES, ids=STAGE_NAMES)
def test_a_stage_uses_exactly_its_files(repo_root: Path, stage: Stage, side: str):
    declared = set(getattr(stage, side))
    # What a stage keeps between two attempts is no file of the pipeline: tests/stages shows that none is left.
    assert _used(repo_root, stage, side) - {"scratch"} == declared


def test_there_is_one_module_for_each_stage_and_no_other(repo_root: Path):
    modules = {path.stem for path in (repo_root / "pipeline" / "stages").glob("*.py")} - {"__init__"}
    assert modules == set(STAGE_NAMES)
    assert len(modules) == 17


@pytest.mark.parametrize("stage", STAGES, ids=STAGE_NAMES)
def test_a_stage_is_one_function_of_params_inputs_and_outputs(repo_root: Path, stage: Stage):
    run = _function(ast.parse((repo_root / f"pipeline/stages/{stage.name}.py").read_text(encoding="utf-8")), "run")
    assert run is not None
    assert [argument.arg for argument in run.args.kwonlyargs] == ["params", "inputs", "outputs"]
    assert not run.args.args
