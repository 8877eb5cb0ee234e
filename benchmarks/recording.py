"""Writing a part's results: JSON with the machine's description, a markdown table, and a picture."""

import argparse
import datetime
import os
import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.drawing import Panel, draw
from pipeline.engine.hardware import describe_hardware
from pipeline.lineage import code_identity, library_versions
from pipeline.records import replacing_file, write_json

RESULTS = Path(__file__).parent / "results"
LIBRARIES = ("torch", "transformers", "peft", "accelerate", "numpy")


def add_options(parser: argparse.ArgumentParser, *, repetitions: int | None) -> None:
    """The options that every part has; `repetitions` is their number by default (None: the part's own)."""
    parser.add_argument("--repetitions", type=int, default=repetitions, help="rounds in which every arm takes its turn")
    parser.add_argument("--model", type=Path, help="folder of another base model (default: the demo's)")
    parser.add_argument("--rows", type=int, default=20000, help="tweets to draw from the source")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")


def describe_machine(device: torch.device) -> dict[str, Any]:
    """The hardware, as far as it decides times, and the libraries."""
    return {
        **describe_hardware(device),
        "cpu": _first_match(Path("/proc/cpuinfo"), r"^model name\s*:\s*(.+)$"),
        "cores": os.cpu_count(),
        "cores_allowed": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory": _first_match(Path("/proc/meminfo"), r"^MemTotal:\s*(.+)$"),
        "platform": platform.platform(),
        "libraries": library_versions(LIBRARIES),
    }


def write_results(
    name: str,
    *,
    title: str,
    device: torch.device,
    settings: Mapping[str, Any],
    found: Mapping[str, Any],
    tables: Sequence[str],
    panels: Sequence[Panel],
    columns: int,
    folder: Path = RESULTS,
) -> None:
    """Write `<name>.json`, `.md` and `.png` in `folder`; files that are there are replaced."""
    machine = describe_machine(device)
    code = code_identity(Path(__file__).parent)
    record = {
        "benchmark": name,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "code": {"commit": code["commit"], "dirty": code["dirty"]},
        "machine": machine,
        "settings": dict(settings),
        **found,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{name}.json", record)
    where = machine.get("gpu") or f"{machine['cpu']}, {machine['threads']} thread(s), {machine['cpu_capability']}"
    libraries = ", ".join(f"{library} {version}" for library, version in machine["libraries"].items())
    parts = [f"# {title}", f"{where}; {libraries}; {record['date']}.", *tables]
    with replacing_file(folder / f"{name}.md") as temporary:
        temporary.write_text("\n\n".join(part.strip() for part in parts) + "\n", encoding="utf-8")
    if panels:
        draw(folder / f"{name}.png", f"{title}\n{where}", panels, columns=columns)


def _first_match(path: Path, pattern: str) -> str | None:
    """The first match in a text file of the system; None where it has no such file or line."""
    try:
        found = re.search(pattern, path.read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        return None
    return found.group(1).strip() if found else None
