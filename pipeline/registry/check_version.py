"""What a version must answer before it may become champion: to rows of the test split, asked over HTTP as in production.

What does not answer here would not answer in production either, so no alias moves before this. `flows/services.py` starts the server.
"""

import json
import math
import tempfile
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from pipeline.errors import RegistryError
from pipeline.layout import Layout
from pipeline.records import read_parquet
from pipeline.registry.registry import download_bundle

ROWS = 2
TOLERANCE = 1e-3
ANSWER_SECONDS = 120.0


def rows_to_ask(*, root: Path, task: str) -> list[dict[str, str]]:
    """The texts of the first rows of the test split, as a caller would send them; raises StageInputError when there is no split."""
    frame = read_parquet(Layout(root, task).path("test")).head(ROWS)
    texts = [name for name in frame.columns if all(isinstance(value, str) for value in frame[name])]
    return [{str(name): value for name, value in row.items()} for row in frame[texts].to_dict(orient="records")]


def verify_stored(*, root: Path, task: str, version: int) -> None:
    """Download the version and verify it, as must be done before a server loads it: what MLflow reads before our loader is called is code to it.

    Raises BundleError when what is stored is not what was registered, RegistryError when it cannot be downloaded.
    """
    with tempfile.TemporaryDirectory() as folder:
        download_bundle(root=root, task=task, version=version, destination=Path(folder) / "bundle")


def ask(url: str, rows: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
    """What the model server at `url` answers to rows of texts; raises RegistryError with its own words when it refuses."""
    body = json.dumps({"dataframe_records": list(rows)}).encode()
    request = urllib.request.Request(f"{url}/invocations", data=body, headers={"Content-Type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the server is on loopback, whatever proxy the environment names
    try:
        with opener.open(request, timeout=ANSWER_SECONDS) as response:
            document: Any = json.load(response)
    except urllib.error.HTTPError as error:
        raise RegistryError(f"The served version refused {len(rows)} rows: {error.read().decode(errors='replace')[:300]}") from error
    except (OSError, ValueError) as error:
        raise RegistryError(f"The served version gave no answer: {error}. Do not promote it; register again.") from error
    answers: Any = document.get("predictions") if isinstance(document, dict) else None
    if not isinstance(answers, list) or not all(isinstance(answer, dict) for answer in cast(list[Any], answers)):
        raise RegistryError(
            f"The served version answered {str(document)[:200]}, expected one mapping per row. Do not promote it; register again."
        )
    return cast(list[dict[str, Any]], answers)


def check_answers(what: str, rows: Sequence[Mapping[str, str]], answers: Sequence[Mapping[str, Any]]) -> None:
    """Raise RegistryError unless every row has one proper answer; `what` names the version in the message."""
    if len(answers) != len(rows):
        raise RegistryError(f"{what} gave {len(answers)} answers to {len(rows)} rows. Do not promote it; register again.")
    for number, answer in enumerate(answers, 1):
        check_answer(f"{what}, test row {number}", answer)


def check_answer(where: str, answer: Mapping[str, Any]) -> None:
    """Raise RegistryError unless `answer` has finite probabilities that sum to 1, and the likeliest label; or is a written text."""
    if set(answer) == {"answer"}:
        if not isinstance(answer["answer"], str):
            raise RegistryError(f"{where}: the answer is {answer['answer']!r}, expected a text. Do not promote it; tune again.")
        return
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
