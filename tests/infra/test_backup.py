"""Back-up and restore on a real PostgreSQL, and the roles of the compose set-up: what comes back is what was there, and what would harm is refused."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows import postgresql
from flows.service_plan import Health, postgresql_service
from flows.services import HOST
from flows.standing_services import records, start, stop, wait_until_healthy
from tests.flows.test_standing_services import free_port

pytestmark = pytest.mark.skipif(postgresql.programs() is None, reason="PostgreSQL is not installed")


@pytest.fixture(scope="module")
def server() -> Iterator[dict[str, str]]:
    """The environment of a client, with a cluster behind it that compose's own script has filled."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        folder.chmod(0o755)
        home, port, user = folder / "postgresql", free_port(), postgresql.account()
        postgresql.make_cluster(home, user)
        wait_until_healthy([start(folder, postgresql_service(folder, port, user))], Health(folder))
        programs = str(postgresql.programs())
        path = os.pathsep.join((programs, os.environ["PATH"]))
        yield {
            **os.environ,
            **postgresql.client_environment(home),
            "PATH": path,
            "PGHOST": HOST,
            "PGPORT": str(port),
            "PGUSER": postgresql.ROLE,
        }
        stop(folder, records(folder))


@pytest.fixture(scope="module")
def databases(server: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Password by role, once infra/compose/make_databases.sh has run."""
    secrets = tmp_path_factory.mktemp("secrets")
    passwords = {"prefect": "it's a 'secret' \\ $HOME", "mlflow": "another"}
    for role, password in passwords.items():
        (secrets / f"{role}_database_password").write_text(password)
    script = Path(__file__).parents[2] / "infra/compose/make_databases.sh"
    done = subprocess.run(
        [str(script)],
        env={**server, "SECRETS_FOLDER": str(secrets), "POSTGRES_USER": postgresql.ROLE},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return passwords


def sql(server: dict[str, str], database: str, query: str, **more: str) -> str:
    command = [
        "psql",
        "--no-psqlrc",
        "--no-password",
        "--tuples-only",
        "--no-align",
        "--quiet",
        "--set",
        "ON_ERROR_STOP=1",
        "--dbname",
        database,
        "--command",
        query,
    ]
    done = subprocess.run(command, env={**server, **more}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def script(server: dict[str, str], name: str, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    path = Path(__file__).parents[2] / "infra/backup" / name
    return subprocess.run([str(path), *arguments], env={**server, **more}, capture_output=True, text=True, check=False)


def test_what_was_backed_up_comes_back(server: dict[str, str], databases: dict[str, str], tmp_path: Path, repo_root: Path) -> None:  # noqa: ARG001
    as_prefect = {"PGUSER": "prefect", "PGPASSWORD": databases["prefect"]}
    sql(
        server,
        "prefect",
        "create table runs (id serial primary key, name text not null, at timestamptz default now()); create index on runs using gin (name gin_trgm_ops)",
        **as_prefect,
    )
    sql(server, "prefect", "insert into runs (name) select 'run ' || n || ' größer' from generate_series(1, 1000) n", **as_prefect)
    fingerprint = "select md5(string_agg(id || name || at, ',' order by id)) from runs"
    before = sql(server, "prefect", fingerprint)

    done = script(server, "backup.sh", str(tmp_path / "backups"))
    assert done.returncode == 0, done.stderr
    backup = Path(done.stdout.strip())
    assert sorted(path.name for path in backup.iterdir()) == ["SHA256SUMS", "mlflow.dump", "mlflow_auth.dump", "prefect.dump"]
    assert (backup / "prefect.dump").stat().st_mode & 0o077 == 0, "nobody else may read it"

    refused = script(server, "restore.sh", str(backup), "mlflow", "prefect")
    assert refused.returncode == 73
    assert "prefect has 1 tables already; nothing was changed" in refused.stderr

    beside = script(server, "restore.sh", str(backup), RESTORE_SUFFIX="_restored")
    assert beside.returncode == 0, beside.stderr
    assert "restored prefect_restored (1 tables, owner prefect)" in beside.stdout
    assert sql(server, "prefect_restored", fingerprint) == before

    sql(server, "postgres", "drop database prefect")
    again = script(server, "restore.sh", str(backup), "prefect")
    assert again.returncode == 0, again.stderr
    assert sql(server, "prefect", fingerprint) == before
    sql(server, "prefect", "insert into runs (name) values ('and on it goes')", **as_prefect)
    assert sql(server, "prefect", "select max(id) from runs") == "1001", "the sequence came back too, and the role owns its table"

    sql(server, "postgres", "drop database prefect")
    damaged = bytearray((backup / "prefect.dump").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (backup / "prefect.dump").chmod(0o600)
    (backup / "prefect.dump").write_bytes(bytes(damaged))
    refused = script(server, "restore.sh", str(backup), "prefect")
    assert refused.returncode == 65
    assert f"{backup} is damaged" in refused.stderr
    assert sql(server, "postgres", "select count(*) from pg_database where datname = 'prefect'") == "0"


def test_a_backup_that_failed_leaves_nothing_that_looks_like_one(server: dict[str, str], databases: dict[str, str], tmp_path: Path) -> None:  # noqa: ARG001
    failed = script(server, "backup.sh", str(tmp_path / "backups"), "mlflow", "no_such_database")
    assert failed.returncode != 0
    assert "no_such_database" in failed.stderr
    assert list((tmp_path / "backups").iterdir()) == []
    assert script(server, "restore.sh", str(tmp_path)).returncode == 66


def test_a_server_s_role_enters_its_own_databases_alone(server: dict[str, str], databases: dict[str, str]) -> None:
    mlflow = {"PGUSER": "mlflow", "PGPASSWORD": databases["mlflow"]}
    assert sql(server, "mlflow_auth", "select current_user", **mlflow) == "mlflow"
    command = ["psql", "--no-password", "--dbname", "mlflow", "--command", "select 1"]
    other = {"PGUSER": "prefect", "PGPASSWORD": databases["prefect"]}
    done = subprocess.run(command, env={**server, **other}, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "permission denied" in done.stderr
    assert (
        sql(server, "mlflow", "select rolsuper or rolcreatedb or rolcreaterole from pg_roles where rolname = current_user", **mlflow) == "f"
    )
