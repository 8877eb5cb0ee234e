"""The rows of a SQL query, through SQLAlchemy, read in chunks inside a transaction that is never committed.

SQLite and PostgreSQL are told to refuse writes, too. Elsewhere a query such as DROP TABLE may take effect at once: give a user that may only read.
"""

import hashlib
import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.data.sources.cells import as_text
from pipeline.data.sources.limits import BLOCK_ROWS, MAXIMUM_COLUMNS, Caps
from pipeline.data.sources.tables import Blocks, positions, transpose
from pipeline.data.sources.wording import in_one_line
from pipeline.errors import SourceError
from pipeline.params import SqlSource

_CHUNK_ROWS = BLOCK_ROWS // 8
_OPTIONS: dict[str, Any] = {
    "stream_results": True,
    "max_row_buffer": _CHUNK_ROWS,
    "no_parameters": True,  # otherwise some drivers take a % in the query for a placeholder
    "postgresql_readonly": True,
}


@contextmanager
def open_query(source: SqlSource, wanted: Sequence[str], caps: Caps) -> Generator[tuple[Blocks, str, str]]:
    """Yield (blocks, the query's name in errors, its sha256); raises SourceError, never with the database's URL in it."""
    from sqlalchemy.exc import SQLAlchemyError

    where = f"The query in ingest.source ({source.url_variable})"
    engine = _engine(source.url_variable)
    secrets = [engine.url.password] if engine.url.password else []
    try:
        with engine.connect().execution_options(**_OPTIONS) as connection:
            if engine.dialect.name == "sqlite":
                connection.exec_driver_sql("PRAGMA query_only = ON")
            result = connection.exec_driver_sql(source.query)
            if not result.returns_rows:
                raise SourceError(
                    f"{where} returns no rows: it is no SELECT. Correct ingest.source.query; nothing was changed in the database."
                )
            yield _blocks(result, wanted, where, caps, secrets), where, hashlib.sha256(source.query.encode()).hexdigest()
    except SQLAlchemyError as error:
        raise SourceError(f"{where} failed: {_problem(error, secrets)}. Correct the query, or check the database.") from None
    finally:
        engine.dispose()


def _engine(variable: str) -> Any:
    import sqlalchemy
    from sqlalchemy.exc import ArgumentError

    url = os.environ.get(variable, "")
    if not url:
        raise SourceError(
            f"The environment variable {variable} (ingest.source.url_variable) is not set. Set it to the database's SQLAlchemy URL,"
            " such as postgresql+psycopg2://user:password@host/database."
        )
    try:
        engine = sqlalchemy.create_engine(url)
    except ArgumentError:
        # The text of this error quotes the URL, password and all.
        raise SourceError(
            f"The environment variable {variable} holds no URL of a database that SQLAlchemy knows. Write it as dialect+driver://user:password@host/database."
        ) from None
    except ImportError as error:
        raise SourceError(
            f"The driver of the database in {variable} is not installed ({error}). For PostgreSQL: `pip install promptmill[postgresql]`."
        ) from None
    _check_sqlite_file(engine.url, variable)
    return engine


def _check_sqlite_file(url: Any, variable: str) -> None:
    """SQLite makes a database that is not there, and reports an empty one."""
    if url.get_backend_name() == "sqlite" and url.database and not url.database.startswith("file:") and not Path(url.database).is_file():
        raise SourceError(f"There is no SQLite database at {url.database} ({variable}). Correct the path in the URL.")


def _blocks(result: Any, wanted: Sequence[str], where: str, caps: Caps, secrets: Sequence[str]) -> Blocks:
    names = [str(name) for name in result.keys()]  # noqa: SIM118 - a result is no mapping
    if len(names) > MAXIMUM_COLUMNS:
        raise SourceError(f"{where} gives {len(names):,} columns, the limit is {MAXIMUM_COLUMNS:,}. Select fewer.")
    places = positions(names, wanted, where=where, hint=" or name the column in ingest.source.query (AS)")
    first_row = 1
    for chunk in _chunks(result, where, secrets):
        rows = [
            [as_text(row[place], f"{where}, data row {number}, column {names[place]!r}") for place in places]
            for number, row in enumerate(chunk, first_row)
        ]
        caps.add_bytes(sum(len(cell) for row in rows for cell in row if cell), where)
        yield transpose(rows)
        first_row += len(rows)


def _chunks(result: Any, where: str, secrets: Sequence[str]) -> Iterator[Sequence[Any]]:
    """Rows as the database sends them; it can still fail in the middle."""
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield from result.partitions(_CHUNK_ROWS)
    except SQLAlchemyError as error:
        raise SourceError(f"{where} failed: {_problem(error, secrets)}. Correct the query, or check the database.") from None


def _problem(error: Exception, secrets: Sequence[str]) -> str:
    """The database's own words in one line. They quote the query and sometimes the address, so passwords are taken out."""
    text = in_one_line(getattr(error, "orig", None) or error, at_most=300)
    for secret in secrets:
        text = text.replace(secret, "***")
    return text
