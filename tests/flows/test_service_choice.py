"""What `promptmill services` decides to run, and how it speaks with a person."""

import argparse
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows import bring_up, postgresql, service_plan
from flows.bring_up import Wish, choose, wanted
from flows.cli import parse
from flows.service_plan import Plan, clients, mlflow_service, prefect_service, service_names, shell_lines, worker_service
from flows.services_command import down, status
from pipeline.errors import WorkspaceError
from pipeline.records import write_json
from tests.flows.test_standing_services import folder, service, start  # noqa: F401  a fixture

NO_POSTGRESQL = "the programs were not found"


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture(params=[True, False], ids=["with PostgreSQL", "without"])
def installed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    monkeypatch.setattr(postgresql, "why_not", lambda _folder: None if request.param else NO_POSTGRESQL)
    return request.param


def test_postgresql_where_it_is_and_else_sqlite_said_aloud(tmp_path: Path, said: list[str], installed: bool) -> None:
    choice = choose(tmp_path, Wish(), said.append)
    assert choice.database == ("postgresql" if installed else "sqlite")
    assert choice.services == [*(["postgresql"] if installed else []), "s3", "prefect", "mlflow", "worker-promptmill-1"]
    assert [NO_POSTGRESQL in line and "SQLite" in line for line in said] == ([] if installed else [True])


def test_a_database_that_was_asked_for_is_not_replaced_silently(tmp_path: Path, said: list[str], installed: bool) -> None:
    if installed:
        assert choose(tmp_path, Wish(database="postgresql"), said.append).database == "postgresql"
    else:
        with pytest.raises(WorkspaceError, match=f"{NO_POSTGRESQL}.*--database sqlite"):
            choose(tmp_path, Wish(database="postgresql"), said.append)


def test_the_choice_before_holds_until_another_is_made(tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgresql, "why_not", lambda _folder: None)
    before = {"database": "sqlite", "artifacts": "s3", "workers": ["gpu", "gpu"], "services": [], "ports": {"prefect": 4300}}
    write_json(tmp_path / bring_up.SETTINGS_FILE, before)
    choice = choose(tmp_path, Wish(), said.append)
    assert (choice.database, choice.artifacts, choice.ports["prefect"], choice.ports["mlflow"]) == ("sqlite", "s3", 4300, 5000)
    assert choice.services == ["s3", "prefect", "mlflow", "worker-gpu-1", "worker-gpu-2"]
    other = choose(tmp_path, Wish(database="postgresql", artifacts="folder", workers=("cpu",), ports={"prefect": 0}), said.append)
    assert (other.database, other.artifacts, other.ports["prefect"], other.services[-1]) == ("postgresql", "folder", 0, "worker-cpu-1")
    assert "The databases of sqlite are kept, but not used" in said[-1]


@pytest.mark.parametrize(
    ("wish", "complaint"),
    [
        (Wish(artifacts="s3", without=("s3",)), "artefacts are to lie on the S3 endpoint, which is left out"),
        (Wish(database="postgresql", without=("postgresql",)), "are on PostgreSQL, which is left out: `--database sqlite`"),
    ],
)
def test_wishes_that_contradict_themselves_are_refused(
    tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch, wish: Wish, complaint: str
) -> None:
    monkeypatch.setattr(postgresql, "why_not", lambda _folder: None)
    with pytest.raises(WorkspaceError, match=complaint):
        choose(tmp_path, wish, said.append)


def test_without_moto_there_is_no_s3_and_that_is_said(tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgresql, "why_not", lambda _folder: None)
    monkeypatch.setattr(service_plan, "missing_moto", lambda: "moto is not installed")
    assert "s3" not in choose(tmp_path, Wish(), said.append).services
    assert said == ["No S3 endpoint: moto is not installed."]
    with pytest.raises(WorkspaceError, match=r"Artefacts on S3 were asked for, but moto is not installed"):
        choose(tmp_path, Wish(artifacts="s3"), said.append)


def test_a_running_server_is_not_moved(folder: Path, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr(postgresql, "why_not", lambda _folder: None)
    record = start(folder, service("mlflow"))
    ports = {"mlflow": record.port}
    write_json(
        folder / bring_up.SETTINGS_FILE,
        {"database": "sqlite", "artifacts": "folder", "workers": [], "services": ["mlflow"], "ports": ports},
    )
    assert choose(folder, Wish(), said.append).database == "sqlite"
    for wish, words in (
        (Wish(database="postgresql"), r"database sqlite \(asked for: postgresql\)"),
        (Wish(artifacts="s3"), r"artifacts folder \(asked for: s3\)"),
        (Wish(ports={"mlflow": record.port + 1}), rf"mlflow on port {record.port} \(asked for: {record.port + 1}\)"),
    ):
        with pytest.raises(WorkspaceError, match=f"{words}.*services down"):
            choose(folder, wish, said.append)


def test_status_tells_by_its_exit_code(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    assert status(folder) == 1
    assert "No service was ever started here" in capsys.readouterr().out
    record = start(folder, service("one"))
    settings = {"database": "sqlite", "artifacts": "folder", "workers": [], "services": ["one"], "ports": {}}
    write_json(folder / bring_up.SETTINGS_FILE, settings)
    from flows.standing_services import wait_until_healthy

    wait_until_healthy([record])
    assert status(folder) == 0
    assert "running" in capsys.readouterr().out
    write_json(folder / bring_up.SETTINGS_FILE, {**settings, "services": ["one", "two"]})
    assert wanted(folder) == ["one", "two"]
    assert status(folder) == 1
    assert "not started" in capsys.readouterr().out
    assert down(folder, argparse.Namespace()) == 0
    assert capsys.readouterr().out == "one ended\n"
    assert status(folder) == 1
    assert down(folder, argparse.Namespace()) == 0
    assert capsys.readouterr().out.endswith("No service was running.\n")


def test_no_secret_stands_in_a_command_an_environment_or_an_address(tmp_path: Path) -> None:
    home = tmp_path / "postgresql"
    home.mkdir()
    password = postgresql._password(home)
    assert (home / "pgpass").stat().st_mode & 0o777 == 0o600
    assert password in (home / "pgpass").read_text()
    plan = Plan(tmp_path, 4200, 5000, postgresql_port=5433, s3_port=9000, artifacts_on_s3=True)
    made = [
        prefect_service(plan),
        mlflow_service(plan),
        worker_service(plan, "gpu", 1, 9101),
        service_plan.postgresql_service(tmp_path, 5433, None),
    ]
    for one in made:
        assert password not in " ".join([*one.command, *one.environment.values(), one.url, one.health_url])
    assert made[0].environment["PGPASSFILE"] == str(home / "pgpass")
    assert made[0].environment["PREFECT_SERVER_DATABASE_CONNECTION_URL"] == "postgresql+asyncpg://promptmill@127.0.0.1:5433/prefect"


def test_the_settings_of_other_servers_do_not_reach_these(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = {
        "PREFECT_API_URL": "http://elsewhere/api",
        "PREFECT_API_DATABASE_CONNECTION_URL": "sqlite:///x",
        "MLFLOW_TRACKING_URI": "http://elsewhere",
        "PGHOST": "elsewhere",
    }
    for name, value in foreign.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PREFECT_LOGGING_LEVEL", "DEBUG")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a person's own")
    plan = Plan(tmp_path, 4200, 5000)
    for one in (prefect_service(plan), mlflow_service(plan), worker_service(plan, "gpu", 1, 9101)):
        assert "elsewhere" not in " ".join(one.environment.values())
    worker = worker_service(plan, "gpu", 1, 9101).environment
    assert worker["PREFECT_API_URL"] == "http://127.0.0.1:4200/api"
    assert worker["PREFECT_LOGGING_LEVEL"] == "DEBUG"
    assert worker["AWS_ACCESS_KEY_ID"] == "a person's own", "without an S3 endpoint of ours the account stays"
    assert clients(Plan(tmp_path, 4200, 5000, s3_port=9000))["AWS_ACCESS_KEY_ID"] == "testing"


def test_workers_are_numbered_by_pool() -> None:
    assert service_names(["prefect", "worker"], ["a", "b-1", "a"]) == ["prefect", "worker-a-1", "worker-b-1-1", "worker-a-2"]
    assert bring_up._pool_and_number("worker-b-1-1") == ("b-1", 1)


def test_the_environment_file_survives_what_a_shell_would_read() -> None:
    assert shell_lines({"A": "b c", "D": "it's"}) == "export A='b c'\nexport D='it'\"'\"'s'\n"


@pytest.mark.parametrize("port", ["prefect", "prefect=x", "prefect=70000", "nobody=1", "worker=1"])
def test_a_port_that_is_none_is_wrong_usage(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse(["services", "up", "--port", port])
    assert "--port" in capsys.readouterr().err


def test_the_command_line_understands_all_of_it() -> None:
    options = parse(
        ["services", "up", "--worker", "gpu", "--worker", "cpu", "--port", "prefect=0", "--port", "worker-gpu-1=9001", "--without", "s3"]
    )
    assert (options.worker, dict(options.port), options.without) == (["gpu", "cpu"], {"prefect": 0, "worker-gpu-1": 9001}, ["s3"])
