"""`make check-supply`: what is installed is what is pinned, a list of it all (SBOM), and known vulnerabilities where a service can be asked.

Without a network the last part cannot be done, and says so; `--require-audit` makes that a failure.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

# What pip-audit asks is about one release; mirrors that serve no more than the newest answer it with "not found", and then nothing is judged.
SERVICE = "https://pypi.org/pypi/pip/25.0/json"
REACH_SECONDS = 10.0
# Ours; what an environment is made with; and what torch's own metadata pins.
UNPINNED = re.compile(r"promptmill|pip|setuptools|wheel|nvidia-.*|cuda-.*|triton")


def normalised(name: str) -> str:
    """A distribution's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_pins(constraints: Path) -> dict[str, str]:
    """Name -> version of a constraints file."""
    lines = (line.split("#")[0].strip() for line in constraints.read_text(encoding="utf-8").splitlines())
    return {normalised(name): version for name, _, version in (line.partition("==") for line in lines if "==" in line)}


def installed() -> dict[str, str]:
    """Name -> version of everything in this environment."""
    return {normalised(found.name): found.version for found in distributions()}


def pin_problems(found: Mapping[str, str], pins: Mapping[str, str]) -> list[str]:
    """One line for each distribution that is not pinned, or not in the pinned version."""
    problems: list[str] = []
    for name, version in sorted(found.items()):
        if name not in pins and not UNPINNED.fullmatch(name):
            problems.append(f"{name} {version} is installed and not in constraints.txt")
        elif name in pins and version.split("+")[0] != pins[name]:
            problems.append(f"{name} {version} is installed, constraints.txt pins {pins[name]}")
    return problems


def write_sbom(path: Path) -> int:
    """Write a CycloneDX list of this environment; returns the number of its components."""
    path.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "cyclonedx_py", "environment", "--output-format", "JSON", "--output-file", str(path), sys.executable]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    return len(json.loads(path.read_text(encoding="utf-8"))["components"])


def unreachable(url: str = SERVICE) -> str | None:
    """Why the vulnerability service cannot be asked, or None when it can."""
    try:
        with urllib.request.urlopen(url, timeout=REACH_SECONDS) as response:
            return None if "vulnerabilities" in json.load(response) else f"{url} is no service that knows vulnerabilities"
    except (urllib.error.URLError, OSError, ValueError) as error:
        return f"{url} does not answer ({error})"


def vulnerabilities(report: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """One line for each known vulnerability of a pip-audit report, and one for each distribution that it could not judge."""
    known: list[str] = []
    unjudged: list[str] = []
    for entry in report["dependencies"]:
        if "skip_reason" in entry and normalised(entry["name"]) != "promptmill":
            unjudged.append(f"{entry['name']}: not judged ({entry['skip_reason']})")
        for one in entry.get("vulns", ()):
            fixed = ", ".join(one["fix_versions"]) or "no version yet"
            known.append(f"{entry['name']} {entry['version']}: {one['id']}, fixed in {fixed}")
    return known, unjudged


def audit() -> tuple[list[str], list[str]]:
    """Ask about everything installed; returns what `vulnerabilities` does."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "audit.json"
        command = [sys.executable, "-m", "pip_audit", "--local", "--progress-spinner", "off", "--format", "json", "--output", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if not path.is_file():
            raise SystemExit(f"pip-audit failed: {' '.join(done.stderr.split())[-500:]}")
        return vulnerabilities(json.loads(path.read_text(encoding="utf-8")))


def main(arguments: Sequence[str] | None = None) -> int:
    """Do all three, print what was found, and return the exit code."""
    parser = argparse.ArgumentParser(prog="check_supply", description="Check what is installed.")
    parser.add_argument("--constraints", type=Path, default=Path("constraints.txt"))
    parser.add_argument("--sbom", type=Path, default=Path("reports/sbom.json"), help="where to write the list")
    parser.add_argument("--offline", action="store_true", help="do not ask for vulnerabilities")
    parser.add_argument("--require-audit", action="store_true", help="fail when vulnerabilities could not be asked for")
    options = parser.parse_args(arguments)
    found, pins = installed(), read_pins(options.constraints)
    problems = pin_problems(found, pins)
    print(f"pins: {len(found)} installed, {len(problems)} problems")
    print(f"SBOM: {write_sbom(options.sbom)} components in {options.sbom}")
    why = "--offline was given" if options.offline else unreachable()
    if why is None:
        known, unjudged = audit()
        print(f"vulnerabilities: {len(known)} known, {len(unjudged)} distributions not judged")
        problems += [*known, *unjudged]
    else:
        print(f"vulnerabilities: NOT CHECKED, {why}. This says nothing about them; run it again where there is a network.")
    print("\n".join(f"  {problem}" for problem in problems))
    return 1 if problems or (why and options.require_audit) else 0


if __name__ == "__main__":
    sys.exit(main())
