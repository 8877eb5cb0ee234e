"""The supply check finds what is not pinned or known to be vulnerable, and never passes over what it could not ask."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def supply(repo_root: Path) -> Any:
    spec = importlib.util.spec_from_file_location("check_supply", repo_root / "infra" / "check_supply.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_unpinned_and_other_versions_are_named(supply: Any, tmp_path: Path) -> None:
    (tmp_path / "constraints.txt").write_text("# pins\nTorch==2.13.0\nruamel.yaml==0.18.1  # a comment\n", encoding="utf-8")
    pins = supply.read_pins(tmp_path / "constraints.txt")
    assert pins == {"torch": "2.13.0", "ruamel-yaml": "0.18.1"}
    found = {"torch": "2.13.0+cpu", "ruamel-yaml": "0.18.2", "left-pad": "1.0", "promptmill": "0.1", "nvidia-cublas": "12"}
    assert supply.pin_problems(found, pins) == [
        "left-pad 1.0 is installed and not in constraints.txt",
        "ruamel-yaml 0.18.2 is installed, constraints.txt pins 0.18.1",
    ]


def test_a_report_with_vulnerabilities_and_one_that_could_not_be_judged(supply: Any) -> None:
    report = {
        "dependencies": [
            {"name": "jinja2", "version": "2.4.1", "vulns": [{"id": "PYSEC-2019-217", "fix_versions": ["2.10.1"]}]},
            {"name": "fine", "version": "1.0", "vulns": []},
            {"name": "odd", "skip_reason": "not on PyPI"},
        ]
    }
    assert supply.vulnerabilities(report) == (["jinja2 2.4.1: PYSEC-2019-217, fixed in 2.10.1"], ["odd: not judged (not on PyPI)"])


def test_without_a_network_it_says_so_and_fails_if_the_audit_is_required(
    supply: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("cyclonedx_py", reason="make check-supply installs the extra `supply`")
    monkeypatch.setattr(supply.unreachable, "__defaults__", ("http://127.0.0.1:9/pypi",))
    pins = tmp_path / "constraints.txt"
    pins.write_text("\n".join(f"{name}=={version.split('+')[0]}" for name, version in supply.installed().items()), encoding="utf-8")
    arguments = ["--constraints", str(pins), "--sbom", str(tmp_path / "sbom.json")]
    assert supply.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "vulnerabilities: NOT CHECKED, http://127.0.0.1:9/pypi does not answer" in printed
    assert "This says nothing about them" in printed
    names = {component["name"].lower() for component in json.loads((tmp_path / "sbom.json").read_text())["components"]}
    assert {"torch", "prefect", "mlflow", "dvc"} <= names
    assert supply.main([*arguments, "--require-audit"]) == 1
    pins.write_text("torch==0.1\n", encoding="utf-8")
    assert supply.main(arguments) == 1
