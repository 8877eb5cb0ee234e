"""The real PostgreSQL of this machine as a service: who it runs as, who gets in, and that the databases are there."""

import os
import pwd
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from flows import postgresql
from flows.service_plan import Health, postgresql_service
from flows.services import HOST
from flows.standing_services import records, start, stop, wait_until_healthy
from tests.flows.test_standing_services import free_port

pytestmark = pytest.mark.skipif(postgresql.programs() is None, reason="PostgreSQL is not installed")


@pytest.fixture
def folder() -> Iterator[Path]:
    """Not pytest's own folder: that is closed to the account that runs the server for root."""
    with tempfile.TemporaryDirectory() as made:
        Path(made).chmod(0o755)
        yield Path(made)
        stop(Path(made), records(Path(made)))


def test_a_cluster_is_made_once_and_opens_to_its_password_alone(folder: Path) -> None:
    import psycopg2

    home, port = folder / "postgresql", free_port()
    assert postgresql.why_not(home) is None
    user = postgresql.account()
    postgresql.make_cluster(home, user)
    made = (home / "pgpass").read_text()
    postgresql.make_cluster(home, user)
    assert (home / "pgpass").read_text() == made, "the cluster and its password stay"
    record = start(folder, postgresql_service(folder, port, user))
    wait_until_healthy([record], Health(folder))
    postgresql.make_databases(home, HOST, port)
    postgresql.make_databases(home, HOST, port)  # the second time there is nothing to do
    assert psutil.Process(record.pid).username() == (user or pwd.getpwuid(os.geteuid()).pw_name)
    assert os.geteuid() != 0 or user in postgresql.ACCOUNTS
    with pytest.raises(psycopg2.OperationalError, match="password"):
        psycopg2.connect(host=HOST, port=port, user=postgresql.ROLE, dbname="prefect", password="guessed", connect_timeout=5)
    query = "select datname from pg_database where not datistemplate order by 1"
    command = [
        "psql",
        "--host",
        HOST,
        "--port",
        str(port),
        "--username",
        postgresql.ROLE,
        "--no-password",
        "--tuples-only",
        "--csv",
        "--command",
        query,
        "prefect",
    ]
    environment = {**os.environ, **postgresql.client_environment(home)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["mlflow", "postgres", "prefect"]
    assert stop(folder, ["postgresql"]) == ["postgresql"]
    assert not (home / "data" / "postmaster.pid").exists(), "it was shut down, not killed"


def test_a_folder_that_the_account_may_not_enter_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgresql, "account", lambda: "nobody")
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    assert postgresql.why_not(folder / "postgresql") is None
    why = postgresql.why_not(closed / "services" / "postgresql")
    assert why is not None
    assert f"the account nobody may not enter {closed} (`chmod o+x {closed}`" in why
    closed.chmod(0o701)
    assert postgresql.why_not(closed / "services" / "postgresql") is None


@pytest.mark.services
def test_a_cluster_that_was_made_halfway_is_made_again(folder: Path) -> None:
    home = folder / "postgresql"
    (home / "data" / "base").mkdir(parents=True)
    postgresql.make_cluster(home, postgresql.account())
    assert (home / "data" / "PG_VERSION").is_file()


def test_the_newest_packaged_version_is_found_without_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for version in ("9.6", "15", "17"):
        programs = tmp_path / version / "bin"
        programs.mkdir(parents=True)
        (programs / "initdb").touch()
        (programs / "postgres").touch()
    (tmp_path / "18" / "bin").mkdir(parents=True)  # a client alone
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(postgresql, "PLACES", (f"{tmp_path}/*/bin",))
    assert postgresql.programs() == tmp_path / "17" / "bin"
