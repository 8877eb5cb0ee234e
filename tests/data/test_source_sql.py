"""SQL: sqlite, and a real PostgreSQL of the test's own; nothing is written to a database, and no password reaches a message."""

import os
import shutil
import sqlite3
import subprocess
from pathlib import Path

import pytest

from pipeline.errors import SourceError
from tests.data.source_reading import nulls_as_none, read

VARIABLE = "PROMPTMILL_TEST_SQL_URL"
ROWS = [("good 100%", 1, 0.5), ("it's :bad", 0, None), (None, 1, 1.0)]


def source(query="SELECT text, label, sure FROM reviews ORDER BY number"):
    return {"kind": "sql", "url_variable": VARIABLE, "query": query}


@pytest.fixture
def sqlite_file(tmp_path, monkeypatch):
    path = tmp_path / "reviews.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE reviews (number INTEGER, text TEXT, label INTEGER, sure REAL)")
    connection.executemany("INSERT INTO reviews VALUES (?, ?, ?, ?)", [(i, *row) for i, row in enumerate(ROWS)])
    connection.commit()
    connection.close()
    monkeypatch.setenv(VARIABLE, f"sqlite:///{path}")
    return path


def error(*, query="SELECT text, label FROM reviews", **options):
    with pytest.raises(SourceError) as caught:
        read(source(query), root=Path(), **options)
    return str(caught.value)


@pytest.mark.usefixtures("sqlite_file")
def test_rows_of_a_query():
    columns = {"fields": {"text": "text"}, "label": "label", "label_confidence": "sure"}
    rows, facts = read(source(), columns, root=Path())
    assert nulls_as_none(rows["text"]) == ["good 100%", "it's :bad", None]
    assert rows["label"].tolist() == ["1", "0", "1"]
    assert nulls_as_none(rows["label_confidence"]) == [0.5, None, 1.0]
    assert (facts.format, facts.sha256_of) == ("sql", "rows")
    again, other = read(source(source()["query"] + " LIMIT 9"), columns, root=Path())
    assert again.equals(rows)
    assert other.sha256 == facts.sha256
    assert other.fingerprint != facts.fingerprint


@pytest.mark.usefixtures("sqlite_file")
def test_percent_signs_and_colons_are_not_parameters():
    rows, _ = read(source("SELECT text, label FROM reviews WHERE text LIKE 'good%' OR text LIKE '%:bad'"), root=Path())
    assert len(rows) == 2


@pytest.mark.usefixtures("sqlite_file")
@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("SELECT text, label FROM nowhere", "no such table: nowhere"),
        ("SELECT text FROM reviews", "has no column 'label'; it has 'text'"),
        ("SELECT text, label, label FROM reviews", "2 columns named 'label'"),
        ("SELECT text, label FROM reviews WHERE number > 99", "no data row"),
        ("SELECT text, label FROM reviews; SELECT 1", "one statement at a time"),
        ("PRAGMA foreign_keys = ON", "returns no rows"),
        ("SELECT text, x'00ff' AS label FROM reviews", "data row 1, column 'label'"),
        ("SELECT 'a' || char(0) AS text, label FROM reviews", "a NUL character"),
        ("nonsense", "syntax error"),
    ],
)
def test_errors(query, words):
    assert words in error(query=query)


def test_nothing_is_changed(sqlite_file):
    before = sqlite_file.read_bytes()
    for query in ("DELETE FROM reviews RETURNING text, label", "DROP TABLE reviews", "CREATE TABLE other (a)"):
        assert "attempt to write a readonly database" in error(query=query)
    assert sqlite_file.read_bytes() == before


@pytest.mark.usefixtures("sqlite_file")
def test_caps():
    assert "ingest.maximum_rows" in error(maximum_rows=2)
    assert "ingest.maximum_bytes" in error(maximum_bytes=5)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "is not set"),
        ("hunter2", "no URL of a database"),
        ("postgresql+nosuch://user:hunter2@host/database", "no URL of a database"),
        ("postgresql+psycopg2://user:hunter2@127.0.0.1:1/database", "Connection refused"),
        ("sqlite:////nowhere/hunter2.db", "There is no SQLite database"),
    ],
)
def test_the_url_is_named_by_its_variable_and_keeps_its_password(monkeypatch, url, words):
    if "psycopg2" in url:
        pytest.importorskip("psycopg2", reason="the extra postgresql is not installed")
    monkeypatch.setenv(VARIABLE, url)
    message = error()
    assert words in message
    assert VARIABLE in message
    assert "user:hunter2" not in message
    assert "\n" not in message


def test_the_missing_driver_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "psycopg2", None)
    monkeypatch.setenv(VARIABLE, "postgresql+psycopg2://user:hunter2@127.0.0.1:1/database")
    message = error()
    assert "pip install promptmill[postgresql]" in message
    assert "hunter2" not in message


# --- PostgreSQL -------------------------------------------------------------------------------------------------------


def _programs() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


@pytest.fixture(scope="module")
def postgresql():
    """The address of a database of a server started for these tests; it listens on a socket in a folder of its own only."""
    pytest.importorskip("psycopg2", reason="the extra postgresql is not installed")
    programs = _programs()
    if programs is None:
        pytest.skip("no PostgreSQL server is installed (Debian: apt-get install postgresql)")
    as_user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []  # the server refuses to run as root
    folder = Path("/tmp") / f"promptmill-postgresql-{os.getpid()}"  # the path of a socket must be short
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    data = folder / "data"

    def run(*command: str) -> None:
        done = subprocess.run([*as_user, *command], cwd="/", capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr

    try:
        run(f"{programs}/initdb", "--no-sync", "--auth=trust", "--encoding=UTF8", "--username=tester", f"--pgdata={data}")
        settings = (
            f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off -c temp_file_limit=100MB -c statement_timeout=60s"
        )
        run(f"{programs}/pg_ctl", "--wait", f"--pgdata={data}", f"--log={folder}/log", "-o", settings, "start")
        try:
            yield f"postgresql+psycopg2://tester:hunter2@/postgres?host={folder}"
        finally:
            run(f"{programs}/pg_ctl", "--wait", "--mode=immediate", f"--pgdata={data}", "stop")
    finally:
        subprocess.run([*as_user, "rm", "-rf", str(data), f"{folder}/log"], check=False)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def server(postgresql, monkeypatch):
    import psycopg2

    monkeypatch.setenv(VARIABLE, postgresql)
    connection = psycopg2.connect(host=postgresql.partition("host=")[2], user="tester", dbname="postgres")
    with connection, connection.cursor() as cursor:
        cursor.execute("DROP TABLE IF EXISTS reviews")
        cursor.execute("DROP SEQUENCE IF EXISTS drawn")
        cursor.execute("CREATE SEQUENCE drawn")
        cursor.execute("CREATE TABLE reviews (number int, text text, label boolean, sure numeric(3, 2), day date, tags text[])")
        cursor.execute(
            "INSERT INTO reviews SELECT n, 'text ' || n || ' 100% \u00fc', n % 2 = 0, 0.25, DATE '2024-02-29', ARRAY['a'] FROM generate_series(1, 20000) n"
        )
    yield connection
    connection.close()


@pytest.mark.usefixtures("server")
def test_postgresql_rows_are_streamed():
    columns = {"fields": {"text": "text", "day": "day"}, "label": "label", "label_confidence": "sure"}
    rows, facts = read(source("SELECT * FROM reviews WHERE text LIKE '%100\\%%' ORDER BY number"), columns, root=Path())
    assert rows["text"].tolist() == [f"text {n} 100% \u00fc" for n in range(1, 20_001)]
    assert rows["label"].tolist() == [str(n % 2 == 0) for n in range(1, 20_001)]
    assert set(rows["day"]) == {"2024-02-29"}
    assert set(rows["label_confidence"]) == {0.25}
    assert facts.rows == 20_000


@pytest.mark.usefixtures("server")
def test_postgresql_a_cap_ends_an_endless_query():
    """Streamed, or it would not come back in a day."""
    query = "SELECT 'x' || generate_series(1, 100000000000) AS text, 'a' AS label"
    assert "ingest.maximum_rows" in error(query=query, maximum_rows=5_000)


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("SELECT text, label FROM nowhere", 'relation "nowhere" does not exist'),
        ("SELECT text, tags AS label FROM reviews", "data row 1, column 'label': \"['a']\" (list)"),
        ("SELECT text, 1 / (number - 9000) AS label FROM reviews ORDER BY number", "division by zero"),
        ("SELECT text, 'NaN'::numeric AS label FROM reviews", "'NaN' (Decimal)"),
    ],
)
def test_postgresql_errors(query, words):
    message = error(query=query)
    assert words in message
    assert "hunter2" not in message


def test_postgresql_nothing_is_changed(server):
    for query in (
        "DELETE FROM reviews RETURNING text, label",
        "DROP TABLE reviews",
        "WITH gone AS (DELETE FROM reviews RETURNING *) SELECT text, label FROM gone",
        "SELECT text, label INTO other FROM reviews",
    ):
        error(query=query)
    # A rollback does not give a sequence its number back.
    assert "read-only transaction" in error(query="SELECT nextval('drawn') AS text, 'a' AS label")
    with server.cursor() as cursor:
        cursor.execute("SELECT count(*), nextval('drawn') FROM reviews")
        assert cursor.fetchone() == (20_000, 1)
