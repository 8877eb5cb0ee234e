import io
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from flows.process_group import end_group, process_group
from flows.stage_process import LiveCopy, StageDied, failure, run_stage, stage_environment
from flows.workspace import changed_stages
from pipeline.errors import StageFailed, WorkspaceError
from tests.flows.flow_workspace import living, make_trivial, writes

DEADLINE = 60.0
LONG_SLEEP = "time.sleep(600)"
CHILD = "subprocess.Popen([sys.executable, '-c', 'import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)'])"
SHOWS_GROUP = "pathlib.Path('group').write_text(str(os.getpgid(0)))"


def wait_for(path: Path) -> str:
    deadline = time.monotonic() + DEADLINE
    while not path.exists() or not path.read_text():
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.05)
    return path.read_text()


def interrupt_when(path: Path, signal_number: int = signal.SIGINT) -> None:
    """Send this process a signal once a file is there."""

    def send() -> None:
        wait_for(path)
        os.kill(os.getpid(), signal_number)

    threading.Thread(target=send, daemon=True).start()


def test_a_stage_runs_then_is_reused_then_restored(tmp_path: Path) -> None:
    root = make_trivial(
        tmp_path / "w", {"one": writes("one") + "; sys.stderr.write('half\\rwhole\\n'); print('chatter')"}, {"one": ["in.txt"]}
    )
    (root / "in.txt").write_text("1")
    screen = io.BytesIO()
    assert changed_stages(root, "demo", ["one"]) == ["one"]
    assert run_stage(root=root, task="demo", stage="one", screen=screen).outcome == "run"
    assert screen.getvalue() == b"half\rwhole\n"
    log = root / ".promptmill" / "logs" / "demo" / "one.log"
    assert b"half\rwhole\n" in log.read_bytes()
    assert b"chatter" in log.read_bytes()
    assert changed_stages(root, "demo", ["one"]) == []
    assert run_stage(root=root, task="demo", stage="one", screen=screen).outcome == "unchanged"
    assert b"chatter" in log.read_bytes()  # the log of the run that made the outputs stays
    (root / "one.txt").unlink()
    (root / "dvc.lock").unlink()
    assert run_stage(root=root, task="demo", stage="one", screen=screen).outcome == "restored"
    assert (root / "one.txt").read_text() == "one"
    assert not list(log.parent.glob("*.partial"))


def test_the_stages_own_message_becomes_the_error_and_is_not_shown_twice(tmp_path: Path) -> None:
    code = "sys.stderr.write('bar 50%\\rbar 100%\\nerror: stage one of demo: rows.csv has 2 error(s):\\n  row 3: no label\\n'); sys.exit(1)"
    root = make_trivial(tmp_path / "w", {"one": code})
    screen = io.BytesIO()
    with pytest.raises(StageFailed) as caught:
        run_stage(root=root, task="demo", stage="one", screen=screen)
    assert str(caught.value) == "stage one of demo: rows.csv has 2 error(s):\n  row 3: no label"
    assert not isinstance(caught.value, StageDied)
    assert screen.getvalue() == b"bar 50%\rbar 100%\n"
    assert b"failed to reproduce" in (root / ".promptmill" / "logs" / "demo" / "one.log").read_bytes()


def test_a_crash_without_a_message_gives_its_last_line_and_the_log(tmp_path: Path) -> None:
    root = make_trivial(tmp_path / "w", {"one": "raise ValueError('no such thing')"})
    with pytest.raises(
        StageFailed, match=r"(?s)stage one of demo: exit code 255, last line: ValueError: no such thing\. .*one\.log"
    ) as caught:
        run_stage(root=root, task="demo", stage="one", screen=io.BytesIO())
    assert not isinstance(caught.value, StageDied)


def test_a_killed_stage_died(tmp_path: Path) -> None:
    root = make_trivial(tmp_path / "w", {"one": "os.kill(os.getpid(), signal.SIGKILL)"})
    with pytest.raises(StageDied, match="stage one of demo: its process was killed"):
        run_stage(root=root, task="demo", stage="one", screen=io.BytesIO())


def test_an_unknown_stage_is_named(tmp_path: Path) -> None:
    root = make_trivial(tmp_path / "w", {"one": writes("one")})
    with pytest.raises(StageFailed, match=r"stage two of demo: .*'two@demo' not found inside 'dvc.yaml'"):
        run_stage(root=root, task="demo", stage="two", screen=io.BytesIO())
    with pytest.raises(WorkspaceError, match=r"'two@demo' not found inside 'dvc.yaml'"):
        changed_stages(root, "demo", ["two"])


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_stage_leaves_no_process_and_can_run_again(tmp_path: Path, signal_number: int) -> None:
    slow = f"{CHILD}; {SHOWS_GROUP}; {LONG_SLEEP}"
    root = make_trivial(tmp_path / "w", {"one": f"if not os.path.exists('quick'):\n    {slow}\n{writes('one')}"})
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        interrupt_when(root / "group", signal_number)
        with pytest.raises(KeyboardInterrupt):
            run_stage(root=root, task="demo", stage="one", screen=io.BytesIO())
    finally:
        signal.signal(signal.SIGTERM, before)
    group = int((root / "group").read_text())
    assert group != os.getpgid(0)
    assert living(group) == []
    assert not (root / "one.txt").exists()
    (root / "quick").touch()
    assert run_stage(root=root, task="demo", stage="one", screen=io.BytesIO()).outcome == "run"


def test_a_successful_stage_leaves_no_child_behind(tmp_path: Path) -> None:
    root = make_trivial(tmp_path / "w", {"one": f"{CHILD}; {SHOWS_GROUP}; {writes('one')}"})
    assert run_stage(root=root, task="demo", stage="one", screen=io.BytesIO()).outcome == "run"
    assert living(int((root / "group").read_text())) == []


def test_a_checkout_at_work_lets_no_second_one_in(tmp_path: Path) -> None:
    root = make_trivial(tmp_path / "w", {"one": f"{SHOWS_GROUP}; {LONG_SLEEP}"})
    command = [sys.executable, "-m", "dvc", "repro", "--single-item", "one@demo"]
    with process_group(command, folder=root, environment=stage_environment(False), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
        wait_for(root / "group")
        with pytest.raises(StageDied, match="another promptmill or dvc is at work"):
            run_stage(root=root, task="demo", stage="one", screen=io.BytesIO())
        with pytest.raises(WorkspaceError, match="Another promptmill or dvc is at work"):
            changed_stages(root, "demo", ["one"])
    assert living(int((root / "group").read_text())) == []


def test_output_is_copied_while_the_stage_runs(tmp_path: Path) -> None:
    """The stage waits for a file that appears only when its first bytes, which end no line, have arrived."""
    code = f"sys.stderr.write('first\\r'); sys.stderr.flush()\nwhile not os.path.exists('seen'): time.sleep(0.05)\n{writes('one')}"
    root = make_trivial(tmp_path / "w", {"one": code})

    class Screen(io.BytesIO):
        def write(self, data: object) -> int:
            (root / "seen").touch()
            return super().write(data)  # pyright: ignore[reportArgumentType]

    screen = Screen()
    assert run_stage(root=root, task="demo", stage="one", screen=screen).outcome == "run"
    assert screen.getvalue() == b"first\r"


def test_end_group_kills_what_ignores_sigterm(tmp_path: Path) -> None:
    code = f"import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); {CHILD}; open('ready', 'w').write('x'); time.sleep(600)"
    with process_group([sys.executable, "-c", code], folder=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_for(tmp_path / "ready")
        assert len(living(process.pid)) == 2
        end_group(process, grace_seconds=0.5)
        assert living(process.pid) == []
        assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
@pytest.mark.parametrize(
    ("printed", "shown"),
    [
        (b"a\rb\r\nc", b"a\rb\r\nc"),
        (b"err\nerror", b"err\n"),
        (b"bar\rerror: stage x\nmore\n", b"bar\r"),
        (b"an error: inside\nERROR: of dvc\n", b"an error: inside\n"),
        (b"errors: 3\n", b"errors: 3\n"),
        (b"", b""),
    ],
)
def test_bytes_up_to_the_error_message_are_shown_however_they_come(printed: bytes, shown: bytes, size: int) -> None:
    screen = io.BytesIO()
    live = LiveCopy(screen)
    for start in range(0, len(printed), size):
        live.write(printed[start : start + size])
    assert screen.getvalue() == shown
    live.release()
    assert screen.getvalue() == printed


def test_the_last_of_several_messages_counts() -> None:
    stderr = "error: stage one of demo: old\nERROR: failed to reproduce\nerror: stage one of demo: new\nERROR: failed to reproduce 'x', exited with 1"
    assert str(failure(stage="one", task="demo", code=255, stderr=stderr, log=Path("l"))) == "stage one of demo: new"


def test_a_stage_finds_our_python_and_the_terminals_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROMPTMILL_PROGRESS", raising=False)
    monkeypatch.setenv("COLUMNS", "77")
    assert stage_environment(False)["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    assert stage_environment(False)["PROMPTMILL_PROGRESS"] == "lines"
    live = stage_environment(True)
    assert (live["PROMPTMILL_PROGRESS"], live["COLUMNS"], "LINES" in live) == ("bar", "77", True)
    monkeypatch.setenv("PROMPTMILL_PROGRESS", "lines")
    assert stage_environment(True)["PROMPTMILL_PROGRESS"] == "lines"
