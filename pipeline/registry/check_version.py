"""`python -m pipeline.registry.check_version TASK VERSION`: load a registered version as any consumer would, and let it answer.

It runs in a process of its own, so that nothing of the run that made the version can help it to load.
"""

import argparse
import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import PromptmillError, RegistryError
from pipeline.layout import Layout
from pipeline.records import read_parquet
from pipeline.registry.connection import explained, tracking_uri
from pipeline.registry.registry import download_bundle

ROWS = 2
TOLERANCE = 1e-3


def check_version(*, root: Path, task: str, version: int) -> list[dict[str, Any]]:
    """The answers of `task` version `version`, loaded with mlflow.pyfunc, to the first rows of the test split.

    Raises BundleError when what is stored is not what was registered, RegistryError when it does not load, or answers anything but label probabilities that sum to 1.
    """
    import mlflow

    rows = read_parquet(Layout(root, task).path("test")).head(ROWS)
    with tempfile.TemporaryDirectory() as folder:  # what MLflow reads before our loader is called must be verified before it does
        download_bundle(root=root, task=task, version=version, destination=Path(folder) / "bundle")
    uri = tracking_uri(root=root)
    mlflow.set_tracking_uri(uri)
    with explained(f"Loading models:/{task}/{version} from {uri}", "Check that the store still holds its files and try again."):
        answers = mlflow.pyfunc.load_model(f"models:/{task}/{version}").predict(rows)
    found = [{str(name): value for name, value in answer.items()} for answer in answers.to_dict(orient="records")]
    if len(found) != len(rows):
        raise RegistryError(f"{task} version {version} gave {len(found)} answers to {len(rows)} rows. Do not promote it; register again.")
    for number, answer in enumerate(found, 1):
        check_answer(f"{task} version {version}, test row {number}", answer)
    return found


def check_answer(where: str, answer: Mapping[str, Any]) -> None:
    """Raise RegistryError unless `answer` has finite probabilities that sum to 1, and the likeliest label."""
    probabilities = {name.removeprefix("p."): float(value) for name, value in answer.items() if name.startswith("p.")}
    total = sum(probabilities.values())
    if (
        not probabilities
        or not all(0.0 <= value <= 1.0 for value in probabilities.values())
        or not math.isclose(total, 1.0, abs_tol=TOLERANCE)
    ):
        raise RegistryError(
            f"{where}: the probabilities are {probabilities}, expected finite ones that sum to 1. Do not promote it; tune again."
        )
    if probabilities.get(answer.get("label", "")) != max(probabilities.values()):
        raise RegistryError(
            f"{where}: the label is {answer.get('label')!r}, the probabilities are {probabilities}. Do not promote it; tune again."
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, check the version, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.registry.check_version", description="Load a registered version and let it answer."
    )
    parser.add_argument("task")
    parser.add_argument("version", type=int)
    parser.add_argument("--root", type=Path, default=Path(), help="the folder of params.yaml")
    options = parser.parse_args(arguments)
    try:
        answers = check_version(root=options.root.resolve(), task=options.task, version=options.version)
    except PromptmillError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    sys.stdout.write(f"{len(answers)} rows answered: {[answer['label'] for answer in answers]}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
