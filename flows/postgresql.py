"""A PostgreSQL cluster of one workspace: its programs, the account it runs under, its password and its databases.

The password is made once, kept in files of mode 0600 and read from there by every client (`PGPASSFILE`, which libpq and asyncpg know), so it
stands in no command line, no URL and no environment.
"""

import importlib.util
import os
import pwd
import re
import secrets
import shutil
import signal
import stat
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import WorkspaceError

if TYPE_CHECKING:
    from psycopg2 import extensions

ROLE = "promptmill"
ADMINISTRATION = "postgres"  # the database that every cluster has
DATABASES = {"prefect": ("pg_trgm",), "mlflow": ()}  # with the extensions that Prefect's migrations need
ACCOUNTS = ("postgres", "nobody")  # for a promptmill that runs as root, which PostgreSQL refuses to do
FAST_SHUTDOWN = signal.SIGINT  # SIGTERM waits for every client to leave
PLACES = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql*/bin", "/usr/local/opt/postgresql*/bin")
CONNECT_SECONDS = 5
INITDB_SECONDS = 120.0


def programs() -> Path | None:
    """The folder that has `postgres` and `initdb`: that of PATH, else the newest version where packages put it, else None."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted((path for place in PLACES for path in Path("/").glob(place[1:])), key=_version, reverse=True)
    return next((folder for folder in folders if (folder / "initdb").is_file() and (folder / "postgres").is_file()), None)


def account() -> str | None:
    """Whom the server runs as: None for this process's own user; when that is root, the first of ACCOUNTS that exists.

    Raises WorkspaceError when none does.
    """
    if os.geteuid() != 0:
        return None
    for name in ACCOUNTS:
        with suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise WorkspaceError(
        f"PostgreSQL refuses to run as root, and none of the accounts {', '.join(ACCOUNTS)} exists. Make one, or run as another user."
    )


def why_not(folder: Path) -> str | None:
    """Why no cluster can be run in `folder`, in words for a person; None when one can."""
    if programs() is None:
        return "the programs postgres and initdb were not found (Debian: `apt-get install postgresql`)"
    if importlib.util.find_spec("psycopg2") is None:
        return "psycopg2 is not installed (`pip install 'promptmill[services]'`)"
    try:
        user = account()
    except WorkspaceError as error:
        return str(error)
    closed = None if user is None else _closed_to(user, folder)
    if closed is not None:
        return f"PostgreSQL refuses to run as root, and the account {user} may not enter {closed} (`chmod o+x {closed}`, or run as another user)"
    return None


def make_cluster(folder: Path, user: str | None) -> None:
    """`initdb` in `<folder>/data` as `user` (None: as this one) with a new password, unless a cluster is there already.

    Raises WorkspaceError with initdb's own last lines.
    """
    data = folder / "data"
    if (data / "PG_VERSION").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    password = _password(folder)
    if user is not None:
        shutil.chown(folder, user)
    shutil.rmtree(data, ignore_errors=True)  # what an initdb that was killed left: without PG_VERSION it is no cluster
    with _password_for(user, password) as file:
        command = [
            *(str(_program("initdb")), "--pgdata", str(data), "--username", ROLE, "--pwfile", str(file)),
            *("--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C", "--no-instructions"),
        ]
        done = subprocess.run(
            command, cwd="/", user=user, group=None if user is None else pwd.getpwnam(user).pw_gid, extra_groups=None if user is None else [],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False, timeout=INITDB_SECONDS,
        )  # fmt: skip
    if done.returncode != 0:
        shutil.rmtree(data, ignore_errors=True)
        raise WorkspaceError(
            f"initdb in {data} failed (exit code {done.returncode}): {' '.join((done.stderr or done.stdout).split())[-500:]}"
        )


def server_command(folder: Path, host: str, port: int) -> tuple[str, ...]:
    """The server on TCP alone; a socket file would need a folder that every account may write to."""
    settings = {"listen_addresses": host, "port": str(port), "unix_socket_directories": ""}
    return (
        str(_program("postgres")),
        "-D",
        str(folder / "data"),
        *(part for name, value in settings.items() for part in ("-c", f"{name}={value}")),
    )


def url(driver: str, host: str, port: int, database: str) -> str:
    """A database's address without the password."""
    return f"{driver}://{ROLE}@{host}:{port}/{database}"


def client_environment(folder: Path) -> dict[str, str]:
    """What a client needs to find the password."""
    return {"PGPASSFILE": str(folder / "pgpass")}


def accepts_connections(folder: Path, host: str, port: int) -> bool:
    """Whether the cluster of `folder` answers a query on that port with our role and password."""
    import psycopg2

    try:
        with _connection(folder, host, port, ADMINISTRATION) as cursor:
            cursor.execute("select 1")
            return cursor.fetchone() == (1,)
    except psycopg2.OperationalError:
        return False


def make_databases(folder: Path, host: str, port: int) -> None:
    """Make the databases of DATABASES that do not exist yet, with their extensions."""
    with _connection(folder, host, port, ADMINISTRATION) as cursor:
        cursor.execute("select datname from pg_database")
        present = {row[0] for row in cursor.fetchall()}
        for name in DATABASES.keys() - present:
            cursor.execute(f'create database "{name}"')
    for name, extensions in DATABASES.items():
        with _connection(folder, host, port, name) as cursor:
            for extension in extensions:
                cursor.execute(f'create extension if not exists "{extension}"')


@contextmanager
def _connection(folder: Path, host: str, port: int, database: str) -> Generator["extensions.cursor"]:
    import psycopg2

    connection = psycopg2.connect(
        host=host, port=port, user=ROLE, dbname=database, passfile=str(folder / "pgpass"), connect_timeout=CONNECT_SECONDS
    )
    try:
        connection.autocommit = True  # a database cannot be made inside a transaction
        with connection.cursor() as cursor:
            yield cursor
    finally:
        connection.close()


def _password(folder: Path) -> str:
    """A new password, kept in the form that clients read."""
    password = secrets.token_urlsafe(32)
    descriptor, name = tempfile.mkstemp(prefix=".pgpass.", dir=folder)  # mode 0600
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(f"*:*:*:{ROLE}:{password}\n")
    Path(name).replace(folder / "pgpass")
    return password


@contextmanager
def _password_for(user: str | None, password: str) -> Generator[Path]:
    """A file that initdb, as `user`, can read the password from; gone afterwards."""
    descriptor, name = tempfile.mkstemp(prefix="promptmill-initdb-")
    try:
        if user is not None:
            os.fchown(descriptor, pwd.getpwnam(user).pw_uid, -1)
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(f"{password}\n")
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def _program(name: str) -> Path:
    folder = programs()
    if folder is None:
        raise WorkspaceError("The programs postgres and initdb were not found. Install PostgreSQL (Debian: `apt-get install postgresql`).")
    return folder / name


def _version(folder: Path) -> tuple[int, ...]:
    return tuple(int(digits) for digits in re.findall(r"\d+", str(folder)))


def _closed_to(user: str, folder: Path) -> Path | None:
    """The first folder above `folder` that `user` may not pass through."""
    entry = pwd.getpwnam(user)
    for parent in reversed([path for path in folder.absolute().parents if path.exists()]):
        status = parent.stat()
        owned, shared = status.st_uid == entry.pw_uid, status.st_gid == entry.pw_gid
        bit = stat.S_IXUSR if owned else stat.S_IXGRP if shared else stat.S_IXOTH
        if not status.st_mode & bit:
            return parent
    return None
