"""Services that outlive their command: records, ports, health, what a death says, and that nothing is left of them."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from flows.services import HOST, Port, claim_port
from flows.standing_services import (
    MARK,
    Record,
    StandingService,
    alive,
    choose_port,
    log_tail,
    records,
    start,
    state,
    stop,
    stop_strays,
    wait_until_healthy,
)
from pipeline.errors import WorkspaceError
from tests.flows.flow_workspace import living

SERVER = """\
import http.server, subprocess, sys
print("serving on", sys.argv[1], flush=True)
if "child" in sys.argv:  # leads a session of its own, as the flow runs of a worker do
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), http.server.SimpleHTTPRequestHandler).serve_forever()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    made = tmp_path / "services"
    made.mkdir()
    yield made
    stop(made, records(made), grace_seconds=1)
    stop_strays(made, grace_seconds=1)


def free_port() -> int:
    port = claim_port(0)
    port.claim.release()
    return port.number


def service(name: str, *arguments: str, code: str = SERVER) -> StandingService:
    port = free_port()
    url = f"http://{HOST}:{port}"
    return StandingService(name, (sys.executable, "-c", code, str(port), *arguments), dict(os.environ), port, url, f"{url}/")


def marked(folder: Path) -> list[int]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK, "").startswith(str(folder)) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except (psutil.Error, OSError):
            continue
    return found


def test_a_service_is_started_found_again_and_ended_with_all_it_started(folder: Path) -> None:
    record = start(folder, service("one", "child"))
    wait_until_healthy([record])
    assert records(folder) == {"one": record}
    assert state(record) == "running"
    assert len(marked(folder)) == 2, "the server and the child in a session of its own"
    assert os.getsid(record.pid) == record.pid != os.getsid(0)
    assert stop(folder, ["one"]) == ["one"]
    assert (marked(folder), living(record.pid), records(folder)) == ([], [], {})
    assert stop(folder, ["one"]) == []


def test_what_a_killed_service_left_behind_is_ended_too(folder: Path) -> None:
    record = start(folder, service("one", "child"))
    wait_until_healthy([record])
    os.kill(record.pid, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(record.pid)], timeout=10)
    assert state(record) == "ended"
    assert len(marked(folder)) == 1
    assert stop(folder, ["one"]) == [], "it did not run any more"
    assert marked(folder) == []


def test_the_end_of_another_folder_s_services_is_not_ours(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "services-2"  # a name that begins with ours
    other.mkdir()
    kept = start(other, service("one"))
    assert stop_strays(folder) == 0
    assert alive(kept)
    stop(other, ["one"])
    assert not alive(kept)


def test_a_process_without_a_record_is_found_by_its_mark(folder: Path) -> None:
    record = start(folder, service("one"))
    (folder / "one.pid.json").unlink()
    assert stop_strays(folder) == 1
    assert not alive(record)


def test_a_number_that_became_somebody_else_s_is_not_taken_for_the_service(folder: Path) -> None:
    record = start(folder, service("one"))
    old = folder / "one.pid.json"
    old.write_text(json.dumps({**json.loads(old.read_text()), "created": record.created - 1}))
    (reused,) = records(folder).values()
    assert state(reused) == "ended"
    (old).write_text(json.dumps({**json.loads(old.read_text()), "name": "other"}))
    assert stop(folder, ["other"]) == []
    assert alive(record), "a process that only has the number of an old record must live"


def test_a_service_that_dies_is_reported_with_the_last_lines_of_this_start(folder: Path) -> None:
    broken = service("one", code="import sys; print('from the ' + sys.argv[2]); sys.exit('the disk is full')")
    for attempt in ("first start", "second start"):
        again = StandingService(**{**vars(broken), "command": (*broken.command, attempt)})
        record = start(folder, again)
        with pytest.raises(WorkspaceError, match="one ended soon after its start") as failed:
            wait_until_healthy([record])
        assert "the disk is full" in str(failed.value)
        assert f"from the {attempt}" in str(failed.value)
    assert "first start" not in str(failed.value)
    assert str(folder / "logs" / "one.log") in str(failed.value)


def test_a_service_that_never_answers_is_named_with_its_address(folder: Path) -> None:
    record = start(folder, service("one", code="import time; print('waiting', flush=True); time.sleep(600)"))
    deadline = time.monotonic() + 30
    while "waiting" not in log_tail(Path(record.log)) and time.monotonic() < deadline:
        time.sleep(0.05)
    with pytest.raises(WorkspaceError, match=rf"one does not answer on {record.health_url} after 0\.2 s(.|\n)*waiting(.|\n)*services down"):
        wait_until_healthy([record], seconds=0.2)
    assert state(record) == "not answering"


def test_a_taken_port_is_an_error_that_says_who_has_it(folder: Path) -> None:
    with socket.create_server((HOST, 0)) as taken:
        number = taken.getsockname()[1]
        with pytest.raises(
            WorkspaceError, match=rf"prefect cannot start: port {number} .* taken by process {os.getpid()} .*--port prefect="
        ) as failed:
            choose_port(folder, "prefect", number)
    assert "(0: any free one)" in str(failed.value)
    chosen = choose_port(folder, "prefect", number)
    assert isinstance(chosen, Port)
    assert chosen.number == number
    chosen.claim.release()


def test_a_running_service_keeps_its_port(folder: Path) -> None:
    record = start(folder, service("one"))
    assert choose_port(folder, "one", free_port()) == record.port


def test_services_outlive_the_process_that_started_them(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.flows.test_standing_services import service, start;"
        "print(start(Path(sys.argv[1]), service('one')).pid)"
    )
    repository = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code, str(folder)], cwd=repository, capture_output=True, text=True, check=True)
    (record,) = records(folder).values()
    assert record.pid == int(done.stdout)
    wait_until_healthy([record])
    assert stop(folder, ["one"]) == ["one"]


def test_records_come_back_oldest_first_whatever_their_names(folder: Path) -> None:
    for name in ("b", "a", "c"):
        start(folder, service(name))
    for path in folder.glob("*.pid.json"):  # as when all three began in one hundredth of a second, which is all that the system tells apart
        path.write_text(json.dumps({**json.loads(path.read_text()), "created": 1.0}))
    assert list(records(folder)) == ["b", "a", "c"]


def test_the_service_that_was_started_last_ends_first(folder: Path) -> None:
    for name in ("b", "a", "c"):
        start(folder, service(name))
    assert stop(folder, ["a", "b", "c"]) == ["c", "a", "b"]


def test_a_record_has_what_it_says(folder: Path) -> None:
    record = start(folder, service("one"))
    assert isinstance(record, Record)
    assert psutil.Process(record.pid).create_time() == record.created
    assert Path(record.log).read_text().startswith(f"--- {record.started_at[:16]}")
