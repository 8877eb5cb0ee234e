"""The engine can be carried to a bare machine: it needs torch, transformers and peft, and of promptmill only the errors."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import pipeline

NEEDED = ("torch", "transformers", "peft", "safetensors", "filelock")
# A command line tool that transformers installs needs it; the engine must not.
WITHHELD = {"pydantic", "pydantic-core"}
OURS = Path(pipeline.__file__).parent

IMPORT_ALL = """
import importlib, logging, os, pkgutil, random, sys
import torch, transformers, peft, safetensors, filelock
def state():
    handlers = list(logging.getLogger().handlers), logging.getLogger().level
    return dict(os.environ), random.getstate(), torch.get_rng_state().tolist(), handlers, sorted(os.listdir())
before = state()
import pipeline.engine
names = [module.name for module in pkgutil.walk_packages(pipeline.engine.__path__, "pipeline.engine.")]
for name in names:
    importlib.import_module(name)
assert state() == before, "importing the engine changed the process"
ours = sorted(name for name in sys.modules if name.split(".")[0] in ("pipeline", "flows") and not name.startswith("pipeline.engine"))
print(len(names), ",".join(ours))
"""

TUNE = """
import sys
from pathlib import Path
import torch
from pipeline.engine.base_model import load_base_model
from pipeline.engine.batching import Example
from pipeline.engine.initialisation import Initialisation, initial_embeddings
from pipeline.engine.learners import SharedPrefixLearner
from pipeline.engine.methods import MethodSettings, build_method
from pipeline.engine.objectives import Classification
from pipeline.engine.optimisation import OptimiserSettings
from pipeline.engine.soft_prompt import load_soft_prompt, save_soft_prompt
from pipeline.engine.template import compile_template, compile_verbalizers
from pipeline.engine.training import TrainingSettings, TrialSettings, train
torch.set_num_threads(1)
base = load_base_model(source={"kind": "directory", "id": "tiny", "path": sys.argv[1]}, dtype="float32", device="cpu")
template = compile_template(tokenizer=base.tokenizer, template="Tweet: {text} Sentiment:", maximum_field_tokens=9)
verbalizers = compile_verbalizers(tokenizer=base.tokenizer, verbalizers={"a": " good", "b": " bad"})
texts = template.encode([{"text": text} for text in ("the plane was late", "thank you", "lost bag", "great crew")])
examples = [Example(ids, index % 2) for index, ids in enumerate(texts)]
rows = initial_embeddings(base=base, num_virtual_tokens=3, initialisation=Initialisation(kind="text", text="late"), seed=0)
module = build_method(base=base, settings=MethodSettings(name="prompt_tuning"), embeddings=rows, seed=0)
learner = SharedPrefixLearner(base=base, head=template.head, objective=Classification(verbalizers), modules=[module])
settings = TrainingSettings(
    maximum_gradient_norm=1.0, batch_size=2, maximum_steps=3, evaluate_every=3, early_stopping_patience=1, metric="macro_f1"
)
optimiser = OptimiserSettings(name="adafactor", learning_rate=0.3, maximum_steps=3)
result = train(
    learner=learner,
    trials=[TrialSettings(name="x", seed=0, optimiser=optimiser)],
    train=examples,
    validation=examples,
    settings=settings,
)
tuned = learner.soft_prompt(result.best_trial)
folder = Path(sys.argv[2])
save_soft_prompt(folder, soft_prompt=tuned, base_model_id="tiny", revision=None, init_text="late")
assert torch.equal(load_soft_prompt(folder, base).values, tuned.values)
assert not torch.equal(tuned.values, rows)
print("tuned", result.steps)
"""


def closure_of(names: tuple[str, ...]) -> set[str]:
    """The installed distributions that these need, themselves included."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name in found:
            continue
        try:
            requires = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # needed on other platforms only
        found.add(name)
        needed = [Requirement(line) for line in requires]
        waiting += [one.name for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})]
    return found


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to import from: links to the needed distributions, and a copy of the engine and the errors."""
    folder = tmp_path_factory.mktemp("bare")
    for name in closure_of(NEEDED) - WITHHELD:
        distribution = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__", "bin"}:
            source = Path(str(distribution.locate_file(top)))
            if source.exists() and not (folder / top).exists():
                (folder / top).symlink_to(source)
    (folder / "pipeline").mkdir()
    for name in ("__init__.py", "errors.py"):
        shutil.copy(OURS / name, folder / "pipeline" / name)
    shutil.copytree(OURS / "engine", folder / "pipeline" / "engine", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def run_bare(bare: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code that can import the standard library and `bare`, and nothing else (-S: no site-packages)."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH") if name in os.environ}
    environment = {**kept, "PYTHONPATH": str(bare), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, "-S", "-c", code, *arguments], env=environment, cwd=bare, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.parametrize(
    "name", ["pandas", "mlflow", "prefect", "pydantic", "fairlearn", "sklearn", "pipeline.params", "pipeline.manifest"]
)
def test_the_bare_folder_lacks_what_the_engine_must_not_need(bare: Path, name: str) -> None:
    """Otherwise the tests below would prove nothing."""
    assert f"No module named '{name}'" in run_bare(bare, f"import {name}").stderr


def test_the_engine_imports_and_tunes_alone_and_importing_it_has_no_effect(bare: Path, model_folder, tmp_path: Path) -> None:
    """One process for all: its imports are what takes the time. No folder made, no seed, log handler or environment variable set."""
    ran = run_bare(bare, IMPORT_ALL + TUNE, str(model_folder("llama")), str(tmp_path))
    assert ran.returncode == 0, ran.stderr
    imported, tuned = ran.stdout.splitlines()
    assert imported == f"{len(list((OURS / 'engine').glob('*.py'))) - 1} pipeline,pipeline.errors"
    assert tuned == "tuned 3"
