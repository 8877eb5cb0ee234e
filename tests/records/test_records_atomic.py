"""A file or folder under its final name is always whole: the old one or the new one, whatever stops the writer."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from pipeline.records import replacing_file, replacing_folder, write_jsonl

# A program that rewrites one output for ever with generations 1, 2, 3 ...; every file of a generation holds one letter.
WRITERS = {
    "json": "write_json(target, {'rows': [letter] * 20000})",
    "jsonl": "write_jsonl(target, ({'row': letter} for _ in range(5000)))",
    "folder": """
with replacing_folder(target) as folder:
    for name in ("one", "two", "three"):
        (folder / name).write_text(letter * 5000)
""",
}
PROGRAM = """
import itertools, sys
from pathlib import Path
from pipeline.records import *
target = Path(sys.argv[1])
for letter in itertools.cycle("abcdefgh"):
{body}
    sys.stdout.write(letter)
    sys.stdout.flush()
"""


def _whole(target: Path, kind: str) -> bool:
    """Whether `target` is one complete generation, judged without the code under test."""
    if kind == "folder":
        contents = {file.name: file.read_text() for file in target.iterdir()}
        return sorted(contents) == ["one", "three", "two"] and len(set(contents.values())) == 1 and len(contents["one"]) == 5000
    text = target.read_text(encoding="utf-8")
    letters = {letter for letter in "abcdefgh" if f'"{letter}"' in text}
    rows = 20000 if kind == "json" else 5000
    return len(letters) == 1 and text.count(f'"{letters.pop()}"') == rows and text.endswith("}\n")


@pytest.mark.parametrize("kind", WRITERS)
def test_a_killed_writer_leaves_the_old_output_or_the_new_one(tmp_path: Path, repo_root: Path, kind: str):
    body = "\n".join("    " + line for line in WRITERS[kind].strip().splitlines())
    seen = 0
    for kill in range(12):
        target = tmp_path / f"{kill}" / "output"
        program = [sys.executable, "-c", PROGRAM.format(body=body), str(target)]
        with subprocess.Popen(program, cwd=repo_root, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.read(1) == b"a"  # the first generation is complete: from here on a writer is at work
            time.sleep(0.003 * kill)
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        assert kind == "folder" or target.exists()
        if target.exists():
            assert _whole(target, kind)
            seen += 1
    assert seen >= 6


def test_a_writer_killed_before_it_is_done_leaves_nothing_under_the_final_name(tmp_path: Path, repo_root: Path):
    target = tmp_path / "log.jsonl"
    program = """
import sys, time
from pathlib import Path
from pipeline.records import write_jsonl
def records():
    for number in range(100000):
        if number == 50000:
            sys.stdout.write("x")
            sys.stdout.flush()
            time.sleep(600)
        yield {"number": number}
write_jsonl(Path(sys.argv[1]), records())
"""
    with subprocess.Popen([sys.executable, "-c", program, str(target)], cwd=repo_root, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(1) == b"x"
        process.kill()
    assert not target.exists()
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".log.jsonl.")
    assert left.name.endswith(".partial")
    assert left.stat().st_size > 100_000
    write_jsonl(target, [{"number": 1}])
    assert target.read_text() == '{"number": 1}\n'


def _fail_half_way(output: AbstractContextManager[Path], name: str, error: BaseException) -> None:
    with output as temporary:
        (temporary / name).write_text("new")
        raise error


@pytest.mark.parametrize("old", [None, "old"])
def test_an_exception_leaves_the_old_file_and_no_temporary_one(tmp_path: Path, old: str | None):
    target = tmp_path / "file"
    if old is not None:
        target.write_text(old)
    with pytest.raises(RuntimeError, match="half-way"):
        _fail_half_way(replacing_file(target), "", RuntimeError("half-way"))
    assert [path.read_text() for path in tmp_path.iterdir()] == ([] if old is None else [old])


@pytest.mark.parametrize("old", [None, "old"])
def test_an_exception_leaves_the_old_folder_and_no_temporary_one(tmp_path: Path, old: str | None):
    target = tmp_path / "folder"
    if old is not None:
        target.mkdir()
        (target / "file").write_text(old)
    with pytest.raises(KeyboardInterrupt):
        _fail_half_way(replacing_folder(target), "file", KeyboardInterrupt())
    assert [path.read_text() for path in tmp_path.rglob("file")] == ([] if old is None else [old])
    assert len(list(tmp_path.iterdir())) == (0 if old is None else 1)


def test_a_folder_is_replaced_completely(tmp_path: Path):
    target = tmp_path / "folder"
    for name in ("first", "second"):
        with replacing_folder(target) as temporary:
            (temporary / name).mkdir()
            (temporary / name / "file").write_text(name)
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == [
        "folder",
        "folder/second",
        "folder/second/file",
    ]


@pytest.mark.parametrize(("write", "mode"), [(replacing_file, 0o640), (replacing_folder, 0o750)])
def test_outputs_get_the_usual_mode_not_the_private_one_of_temporary_files(
    tmp_path: Path, write: Callable[[Path], AbstractContextManager[Path]], mode: int
):
    before = os.umask(0o027)
    try:
        with write(tmp_path / "output"):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "output").stat().st_mode & 0o777 == mode
