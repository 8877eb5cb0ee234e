"""Every server of the pinned set starts and answers: versions that install together do not always run together."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from flows.services import HOST, check_alive, claim_port, mlflow_service, prefect_service, running
from flows.settings import prefect_defaults
from pipeline.errors import WorkspaceError
from tests.flows.flow_workspace import REPOSITORY, environment, living


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(("PREFECT_", "MLFLOW_")):
            monkeypatch.delenv(name)


def get(url: str) -> bytes:
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=30) as response:
        assert response.status == 200
        return response.read()


def test_both_servers_start_answer_and_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.services.PREFECT_PORT", 0)  # any port but the default one, which Prefect's page would ask anyway
    prefect, mlflow = prefect_service(tmp_path), mlflow_service(tmp_path)
    with running([prefect, mlflow]) as started:
        check_alive(started)
        assert json.loads(get(f"{prefect.url}/api/health")) is True
        assert json.loads(get(f"{prefect.url}/ui-settings"))["api_url"] == f"{prefect.url}/api"
        assert b"<html" in get(prefect.url)
        assert get(f"{mlflow.url}/health") == b"OK"
        assert b"<html" in get(mlflow.url)
        groups = [one.process.pid for one in started]
        assert all(living(group) for group in groups)
    assert [living(group) for group in groups] == [[], []]
    assert (tmp_path / ".promptmill" / "prefect" / "prefect.db").is_file()
    assert (tmp_path / ".promptmill" / "mlflow" / "mlflow.db").is_file()


def test_the_ui_command_serves_until_it_is_told_to_stop(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").touch()
    command = [sys.executable, "-m", "flows.cli", "ui"]
    with (tmp_path / "err").open("wb") as errors:
        shown = subprocess.Popen(command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=errors, text=True)
        assert shown.stdout is not None
        with shown.stdout:
            pages = [shown.stdout.readline().split() for _ in range(2)]
            assert [page[0] for page in pages] == ["Prefect", "MLflow"], (tmp_path / "err").read_text()
            for _, url in pages:
                assert b"<html" in get(url)
            shown.send_signal(signal.SIGTERM)
            assert shown.wait(timeout=120) == 0
    for _, url in pages:
        with socket.socket() as probe:
            assert probe.connect_ex((HOST, int(url.rpartition(":")[2]))) != 0


def test_a_server_that_ends_is_reported_with_its_last_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_DATABASE_CONNECTION_URL", "sqlite+aiosqlite:////nowhere/at/all.db")
    with (
        pytest.raises(WorkspaceError, match=r"The Prefect server ended with exit code \d+: .*prefect-server\.log"),
        running([prefect_service(tmp_path)]),
    ):
        pass


def test_a_taken_port_is_replaced() -> None:
    with socket.create_server((HOST, 0)) as taken:
        number = taken.getsockname()[1]
        assert claim_port(number).number != number
    assert claim_port(number).number == number


def test_two_runs_that_start_together_get_a_server_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server((HOST, 0)) as taken:
        number = taken.getsockname()[1]
    monkeypatch.setattr("flows.services.PREFECT_PORT", number)
    first, second = prefect_service(tmp_path / "first"), prefect_service(tmp_path / "second")
    assert first.port.number == number
    assert second.port.number != number, "the first server does not listen yet, and is about to"
    first.port.claim.release()
    assert prefect_service(tmp_path / "third").port.number == number


def test_the_settings_of_the_user_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_HOME", "/elsewhere")
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")
    service = prefect_service(tmp_path)
    assert service.environment["PREFECT_HOME"] == "/elsewhere"
    assert "PREFECT_API_URL" not in service.environment  # the server itself is no client of another one
    assert service.environment["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"


def test_prefect_knows_every_setting_we_set(tmp_path: Path) -> None:
    """A misspelt or renamed setting would be ignored without a word."""
    ours = prefect_defaults(tmp_path)
    code = (
        "from prefect.settings import get_current_settings as s; import prefect.logging.configuration as c, json;"
        "c = c.load_logging_config(c.DEFAULT_LOGGING_SETTINGS_PATH); s = s();"
        "print(json.dumps([str(s.home), s.server.ephemeral.startup_timeout_seconds, s.results.default_serializer,"
        " s.server.analytics_enabled, c['handlers']['console']['level'], s.server.ui.api_url]))"
    )
    more = {"PREFECT_SERVER_UI_API_URL": "http://127.0.0.1:7/api"}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**environment(), **ours, **more}, cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == [ours["PREFECT_HOME"], 120, "json", False, "WARNING", "http://127.0.0.1:7/api"]
