"""Importing our modules changes nothing, and the light ones stay light."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# Imports every module of both packages, undoes what that did to the environment, and imports them again while watching: the
# third-party libraries are loaded by then, so whatever changes the second time was changed by our own modules.
WATCH = """
import importlib, json, logging, os, pkgutil, random, shutil, signal, sys, threading, warnings
from pathlib import Path

root = Path.cwd()

def names():
    found = []
    for package in ("pipeline", "flows"):
        found += [package, *(info.name for info in pkgutil.walk_packages([package], f"{package}."))]
    return found

def import_all():
    return [importlib.import_module(name).__name__ for name in names()]

def tree():
    return {str(path): path.stat().st_mtime_ns for path in sorted(root.rglob("*"))}

def random_states():
    states = {"random": str(random.getstate())}
    if "numpy" in sys.modules:
        states["numpy"] = str(sys.modules["numpy"].random.get_state())
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        states["torch"] = str((torch.get_rng_state().tolist(), torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()))
    return states

def state():
    logger = logging.getLogger()
    return {
        "disk": tree(),
        "environment": dict(os.environ),
        "logging": [logger.level, str(logger.handlers), logging.root.manager.disable],
        "random": random_states(),
        "warnings": [str(item) for item in warnings.filters],
        "sys.path": list(sys.path),
        "folder": os.getcwd(),
        "signals": [str(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)],
        "excepthook": str(sys.excepthook),
        "threads": threading.active_count(),
    }

environment, filters, path, terminate = dict(os.environ), list(warnings.filters), list(sys.path), signal.getsignal(signal.SIGTERM)
first = import_all()
os.environ.clear()
os.environ.update(environment)
warnings.filters[:] = filters
sys.path[:] = path
os.chdir(root)
signal.signal(signal.SIGTERM, terminate)
logging.getLogger().handlers.clear()
logging.getLogger().setLevel(logging.WARNING)
random.random()
if "numpy" in sys.modules:
    sys.modules["numpy"].random.random()
if "torch" in sys.modules:
    sys.modules["torch"].rand(1)
for path in root.iterdir():
    if path.name not in ("pipeline", "flows", "params.yaml", "dvc.yaml", "pyproject.toml"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
for name in [name for name in sys.modules if name.split(".")[0] in ("pipeline", "flows")]:
    del sys.modules[name]
earlier = state()
second = import_all()
later = state()
assert first == second
changed = {key: [str(earlier[key]), str(later[key])] for key in earlier if earlier[key] != later[key]}
sys.stdout.write(json.dumps({"modules": second, "changed": changed}))
"""

TOP_LEVEL = ("__main__", "combinations", "params", "params_file", "layout", "records", "errors", "manifest", "dvc_file", "gates")
PACKAGES = ("data", "evaluation", "fairness", "reporting")
GREAT_EXPECTATIONS = {"pipeline.data.contract", "pipeline.data.data_docs"}  # the data contract's edge
HEAVY = ("torch", "transformers", "peft", "mlflow", "great_expectations", "prefect", "matplotlib")


def _run(program: str, folder: Path) -> Any:
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(folder)}
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _module_files(repo_root: Path) -> set[str]:
    files = [path.relative_to(repo_root) for package in ("pipeline", "flows") for path in (repo_root / package).rglob("*.py")]
    return {".".join(file.with_suffix("").parts).removesuffix(".__init__") for file in files}


@pytest.fixture
def code(copy_code: Callable[[Path], None], tmp_path: Path) -> Path:
    """A copy of the code in a folder of its own, which is home and current folder of the program under test."""
    copy_code(tmp_path)
    return tmp_path


def test_importing_any_module_changes_nothing(repo_root: Path, code: Path):
    watched = _run(WATCH, code)
    assert set(watched["modules"]) == _module_files(repo_root)
    assert watched["changed"] == {}


EFFECTS = {
    "disk": "import pathlib; pathlib.Path('mlruns').mkdir(exist_ok=True)",
    "environment": "import os; os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')",
    "logging": "import logging; logging.basicConfig()",
    "random": "import random; random.seed(0)",
    "warnings": "import warnings; warnings.simplefilter('ignore')",
    "sys.path": "import sys; sys.path.append('/nowhere')",
    "folder": "import os; os.chdir('/')",
    "signals": "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)",
}


def test_the_watch_sees_effects_of_imports(code: Path):
    for package in ("pipeline", "flows"):
        for path in (code / package).rglob("*.py"):
            path.write_text("")
    for number, text in enumerate(EFFECTS.values()):
        (code / "pipeline" / f"effect_{number}.py").write_text(text)
    assert set(_run(WATCH, code)["changed"]) == set(EFFECTS)


def test_light_modules_load_no_heavy_library(repo_root: Path, code: Path):
    light = [name for name in _module_files(repo_root) if name.split(".")[1:2] and name.split(".")[1] in (*TOP_LEVEL, *PACKAGES)]
    modules = sorted(light, key=lambda name: (name in GREAT_EXPECTATIONS, name))  # what one has loaded stays loaded for the next
    assert {f"pipeline.{name}" for name in (*TOP_LEVEL, *PACKAGES)} <= set(modules)
    program = f"""
import importlib, json, sys
loaded = {{}}
for name in {modules!r}:
    importlib.import_module(name)
    loaded[name] = [heavy for heavy in {HEAVY!r} if heavy in sys.modules]
sys.stdout.write(json.dumps(loaded))
"""
    expected = {name: ["great_expectations"] if name in GREAT_EXPECTATIONS else [] for name in modules}
    assert _run(program, code) == expected
