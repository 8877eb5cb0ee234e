"""What every test runs under: no network but loopback, no model hub, and the repository's root at hand."""

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
COUNT = "count"
LOOPBACK = ("127.", "::1", "localhost")

os.environ.update(OFFLINE)  # before any test module imports a library that reads them


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The folder that holds params.yaml, pipeline/ and flows/."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture
def count(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """A function that has one line printed at the end of the test session: how often a fault was injected, and what came of it."""
    return lambda line: record_property(COUNT, line)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what the tests gave to `count`."""
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.getreports(outcome)]
    lines = [
        f"{report.nodeid.rpartition('::')[2]}: {value}" for report in reports for name, value in report.user_properties if name == COUNT
    ]
    if lines:
        terminalreporter.section("counts")
        for line in lines:
            terminalreporter.write_line(line)


@pytest.fixture(autouse=True, scope="session")
def offline() -> Iterator[None]:
    """Refuse connections that leave this machine, so that no test passes only because a network was there."""
    connect, connect_ex = socket.socket.connect, socket.socket.connect_ex

    def refuse(address: Any) -> None:
        if isinstance(address, tuple) and not str(address[0]).startswith(LOOPBACK):
            raise AssertionError(
                f"A test tried to connect to {address[0]}:{address[1]}; tests run offline, use a file or a loopback server."
            )

    def guarded_connect(self: socket.socket, address: Any) -> None:
        refuse(address)
        connect(self, address)

    def guarded_connect_ex(self: socket.socket, address: Any) -> int:
        refuse(address)
        return connect_ex(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded_connect)
        patch.setattr(socket.socket, "connect_ex", guarded_connect_ex)
        yield
