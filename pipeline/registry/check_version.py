"""`python -m pipeline.registry.check_version TASK VERSION`: serve a registered version as infra would, and let it answer.

`mlflow models serve` loads it in a process of its own, so that nothing of the run that made the version can help it to load, and answers over HTTP on
loopback. What does not answer here would not answer in production either, so no alias moves before this.
"""

import argparse
import json
import math
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from pipeline.errors import PromptmillError, RegistryError
from pipeline.layout import Layout
from pipeline.records import read_parquet
from pipeline.registry.connection import tracking_uri
from pipeline.registry.registry import download_bundle

ROWS = 2
TOLERANCE = 1e-3
HOST = "127.0.0.1"
SERVE_SECONDS = 600.0
ANSWER_SECONDS = 120.0
POLL_SECONDS = 0.2


def check_version(*, root: Path, task: str, version: int, seconds: float = SERVE_SECONDS) -> list[dict[str, Any]]:
    """The answers of `task` version `version`, served by MLflow, to the first rows of the test split.

    Raises BundleError when what is stored is not what was registered, RegistryError when it does not answer within `seconds`, or answers
    anything but label probabilities that sum to 1, or texts.
    """
    frame = read_parquet(Layout(root, task).path("test")).head(ROWS)
    texts = [name for name in frame.columns if all(isinstance(value, str) for value in frame[name])]
    rows = [{str(name): value for name, value in row.items()} for row in frame[texts].to_dict(orient="records")]
    with tempfile.TemporaryDirectory() as folder:  # what MLflow reads before our loader is called must be verified before it does
        download_bundle(root=root, task=task, version=version, destination=Path(folder) / "bundle")
    with serving(root=root, task=task, version=version, seconds=seconds) as url:
        found = ask(url, rows)
    if len(found) != len(rows):
        raise RegistryError(f"{task} version {version} gave {len(found)} answers to {len(rows)} rows. Do not promote it; register again.")
    for number, answer in enumerate(found, 1):
        check_answer(f"{task} version {version}, test row {number}", answer)
    return found


@contextmanager
def serving(*, root: Path, task: str, version: int, seconds: float = SERVE_SECONDS) -> Generator[str]:
    """`mlflow models serve` of a version on a free port of loopback; yields its address once it answers.

    Raises RegistryError with the last line that it printed when it ends, or does not answer within `seconds`.
    """
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = int(probe.getsockname()[1])
    uri = tracking_uri(root=root)
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", f"models:/{task}/{version}", "--env-manager", "local"]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": uri, "MLFLOW_REGISTRY_URI": os.environ.get("MLFLOW_REGISTRY_URI") or uri}
    environment["PATH"] = os.pathsep.join(
        (str(Path(sys.executable).parent), environment.get("PATH", os.defpath))
    )  # it starts uvicorn by name
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(
            [*command, "--host", HOST, "--port", str(port)], env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            url = f"http://{HOST}:{port}"
            deadline = time.monotonic() + seconds
            while not _answers(f"{url}/ping"):
                if server.poll() is not None or time.monotonic() > deadline:
                    how = f"took longer than {seconds:g} s" if server.poll() is None else f"ended with exit code {server.returncode}"
                    raise RegistryError(f"Serving {task} version {version} {how}: {_last_line(log)} Register it again; do not promote it.")
                time.sleep(POLL_SECONDS)
            yield url
        finally:
            _end(server)


def ask(url: str, rows: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
    """What a server of `serving` answers to rows of texts; raises RegistryError with its own words when it refuses."""
    body = json.dumps({"dataframe_records": list(rows)}).encode()
    request = urllib.request.Request(f"{url}/invocations", data=body, headers={"Content-Type": "application/json"})
    try:
        with _opener().open(request, timeout=ANSWER_SECONDS) as response:
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


def _end(server: subprocess.Popen[bytes]) -> None:
    """MLflow's command starts the web server as a child, which its own end would leave behind."""
    import psutil

    processes = psutil.Process(server.pid).children(recursive=True) if server.poll() is None else []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    server.kill()
    server.wait()


def _answers(url: str) -> bool:
    try:
        with _opener().open(url, timeout=5.0) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False


def _opener() -> urllib.request.OpenerDirector:
    """Without the proxy that the environment may name: the server is on loopback."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _last_line(log: Any) -> str:
    log.seek(0)
    lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it printed nothing."


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
    sys.stdout.write(f"{len(answers)} rows answered: {[answer.get('label', answer.get('answer')) for answer in answers]}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
