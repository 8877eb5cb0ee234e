"""The files below infra/ pass their checks, and each check notices a copy that is broken in the way it is there for."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from infra import check_infra

# check, and breaks that are made together: file, what stands there, what is put in its place, what must be said
BROKEN = [
    ("compose", [("compose/compose.yaml", "    profiles: [gpu]\n", "    profile: [gpu]\n", "services.worker-gpu.profile")]),
    ("compose", [
        ("compose/compose.yaml", "image: redis:7.4.5-bookworm", "image: redis:latest", "service redis: image redis:latest is not pinned"),
        ("compose/compose.yaml", "${BIND_ADDRESS:-127.0.0.1}:${MLFLOW_PORT", "${MLFLOW_PORT", "service mlflow: port 5000 listens on every address"),
        ("compose/compose.yaml", "      MLFLOW_DATABASE_PASSWORD_FILE: /run/secrets/mlflow_database_password", "      MLFLOW_DATABASE_PASSWORD: guessed", "MLFLOW_DATABASE_PASSWORD holds a secret"),
        ("compose/compose.yaml", "secrets: [s3_identities]", "secrets: [s3_access_key]", "compose secret s3_identities is used by no service"),
        ("compose/compose.yaml", "mlflow_admin_password, mlflow_flask_secret, s3_access_key", "mlflow_flask_secret, s3_access_key", "mlflow_admin_password, which is not mounted"),
        ("compose/compose.yaml", "  cap_drop: [ALL]\n", "", "does not drop all capabilities"),
    ]),
    ("images", [
        ("images/worker.Dockerfile", "USER 1001:1001\n", "", "worker.Dockerfile: the last USER must be a number other than 0"),
        ("images/worker-gpu.Dockerfile", "USER 1001:1001\n", "USER 0\n", "worker-gpu.Dockerfile: the last USER must be a number other than 0"),
        ("images/worker-gpu.Dockerfile", "FROM nvidia/cuda:13.0.1-base-ubuntu24.04\n", "FROM nvidia/cuda\n", "image nvidia/cuda has no tag"),
        ("images/mlflow.Dockerfile", "COPY constraints.txt ./", "COPY constraint.txt ./", "copies constraint.txt, which does not exist"),
        ("images/mlflow.Dockerfile", "EXPOSE 5000\n", "EXPOSE 5000\nENV ADMIN_PASSWORD=guessed\n", "ADMIN_PASSWORD=guessed looks like a secret"),
        ("images/mlflow.Dockerfile", "tini=0.19.*", "tini", "DL3008"),
    ]),
    ("kubernetes", [
        ("kubernetes/namespace.yaml", "accessModes:", "accessMode:", "namespace.yaml"),
        ("kubernetes/network_policies.yaml", "policyTypes: [Ingress, Egress]", "policyTypes: Ingress", "network_policies.yaml"),
        ("kubernetes/gpu_work_pool.json", '"backoffLimit": "{{ backoff_limit }}",', '"backoffLimits": "{{ backoff_limit }}",', "gpu_work_pool.json: kubernetes-validate"),
        ("kubernetes/gpu_work_pool.json", '"medium": "Memory", ', "", "/dev/shm must be a volume in memory"),
        ("kubernetes/gpu_work_pool.json", '"memory": "{{ memory_limit }}", "nvidia.com/gpu": "{{ gpus }}"', '"memory": "{{ memory_limit }}"', "a GPU must be requested and limited"),
        ("kubernetes/gpu_work_pool.json", '"{{ cache_claim }}"', '"{{ cache_claims }}"', "{{ cache_claims }} is not declared"),
        ("kubernetes/gpu_work_pool.json", '"key": "nvidia.com/gpu", ', '"key": "other", ', "tolerate nvidia.com/gpu"),
    ]),
    ("helm", [
        ("helm/prefect-server.yaml", "prefectTag: 3.8.8-python3.11", "prefectTag: 3-latest", "prefectTag is 3-latest, not a version"),
        ("helm/mlflow.yaml", "    app_name: basic-auth", "    password: guessed", "value_options.password holds a secret"),
    ]),
    ("settings", [
        ("compose/compose.yaml", "PREFECT_SERVER_DATABASE_NAME", "PREFECT_SERVER_DATABASE_NAMES", "has a setting PREFECT_SERVER_DATABASE_NAMES"),
        ("helm/mlflow.yaml", "    app_name: basic-auth", "    app_names: basic-auth", "mlflow server has no option --app-names"),
        ("compose/compose.yaml", "MLFLOW_SERVER_ALLOWED_HOSTS:", "MLFLOW_SERVER_ALLOWED_HOST:", "has a setting MLFLOW_SERVER_ALLOWED_HOST"),
    ]),
    ("monitoring", [
        ("monitoring/alerts.yaml", "promptmill_run_succeeded == 0", "promptmill_run_success == 0", "nobody writes promptmill_run_success"),
        ("monitoring/prometheus.yaml", "scrape_interval", "scrape_intervall", "field scrape_intervall not found"),
        ("monitoring/promptmill_dashboard.json", "time() - promptmill_run", "time() -- - promptmill_run(", "dashboard: promtool"),
        ("monitoring/grafana_sources.yaml", "uid: prometheus", "uid: other", "there is no data source prometheus"),
    ]),
    ("monitoring", [("monitoring/alerts.yaml", "expr: promptmill_run_succeeded == 0", "expr: promptmill_run_succeeded === 0", "parse error")]),
    ("monitoring", [("monitoring/alerts.yaml", "        for: 5m\n", "        for: 1m\n", "alertname: PromptmillPrefectGone")]),
    ("scripts", [("backup/backup.sh", "[ $# -ge 1 ] ||", "[ $# -ge 1 -a $1 != x ] ||", "SC2086")]),
]  # fmt: skip


def looked_at(check: str, infra: Path) -> list[str]:
    """What a check says, or a skip when its program is missing."""
    try:
        return check_infra.CHECKS[check](infra)
    except check_infra.Missing as missing:
        pytest.skip(str(missing))


@pytest.fixture
def copy(tmp_path: Path, repo_root: Path) -> Path:
    for name in ("infra", "pipeline", "flows"):
        (tmp_path / name).mkdir()
    for name in ("pyproject.toml", "constraints.txt", "README.md", "LICENSE"):
        (tmp_path / name).touch()
    shutil.copytree(repo_root / "infra", tmp_path / "infra", dirs_exist_ok=True)
    return tmp_path / "infra"


@pytest.mark.parametrize("check", list(check_infra.CHECKS))
def test_ours_pass(check: str, repo_root: Path) -> None:
    assert looked_at(check, repo_root / "infra") == []


@pytest.mark.parametrize(("check", "breaks"), BROKEN, ids=[f"{check}-{breaks[-1][3]}" for check, breaks in BROKEN])
def test_broken_copies_are_noticed(copy: Path, check: str, breaks: list[tuple[str, str, str, str]]) -> None:
    for file, old, new, _ in breaks:
        text = (copy / file).read_text(encoding="utf-8")
        assert old in text
        (copy / file).write_text(text.replace(old, new), encoding="utf-8")
    problems = looked_at(check, copy)
    assert [words for *_, words in breaks if not any(words in problem for problem in problems)] == [], problems


@pytest.mark.parametrize("check", ["images", "kubernetes", "helm", "settings", "scripts"])
def test_a_check_that_finds_nothing_to_look_at_fails(tmp_path: Path, check: str) -> None:
    assert looked_at(check, tmp_path / "infra") != []


def test_a_script_that_cannot_be_started_is_noticed(copy: Path) -> None:
    (copy / "backup" / "restore.sh").chmod(0o644)
    assert "restore.sh is not executable" in looked_at("scripts", copy)


def test_a_missing_program_is_said_and_can_be_made_a_failure(
    repo_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(name: str) -> str:
        raise check_infra.Missing(f"{name} is not installed")

    monkeypatch.setattr(check_infra, "_program", absent)
    monkeypatch.setattr(check_infra, "CHECKS", {"scripts": check_infra.check_scripts})
    assert check_infra.main(["--infra", str(repo_root / "infra")]) == 0
    assert capsys.readouterr().out == "scripts: NOT CHECKED, shellcheck is not installed\n"
    assert check_infra.main(["--infra", str(repo_root / "infra"), "--require-all"]) == 1


def run(script: Path, *arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(script), *arguments], env=environment, capture_output=True, text=True, check=False)


def test_secrets_are_made_once_at_random_and_closed(repo_root: Path, tmp_path: Path) -> None:
    script, folder = repo_root / "infra/compose/make_secrets.sh", tmp_path / "secrets"
    assert run(script, str(folder)).returncode == 0
    assert folder.stat().st_mode & 0o777 == 0o700
    made = {path.name: path.read_text() for path in folder.iterdir()}
    assert len(made) == 12
    assert all(len(value) >= 64 for value in made.values())
    assert len(set(made.values())) == 11, "the worker's password is the admin's; no two others are the same"
    assert made["prefect_auth_string"] == f"admin:{made['prefect_auth_password']}"
    (identity,) = json.loads(made["s3_identities"])["identities"]
    assert identity["credentials"] == [{"accessKey": made["s3_access_key"], "secretKey": made["s3_secret_key"]}]
    (folder / "s3_secret_key").unlink()
    again = run(script, str(folder))
    assert again.stdout == f"made {folder}/s3_secret_key\n"
    assert (folder / "mlflow_admin_password").read_text() == made["mlflow_admin_password"]


@pytest.mark.parametrize(
    ("environment", "code", "out", "err"),
    [
        ({"KEY_FILE": "{folder}/key"}, 0, "[it's $HOME] []", ""),
        ({"KEY_FILE": "{folder}/none"}, 78, "", "KEY_FILE names {folder}/none, which cannot be read"),
        ({"KEY_FILE": "{folder}/empty"}, 78, "", "{folder}/empty is empty"),
        ({"KEY_FILE": "{folder}/key", "KEY": "x"}, 78, "", "both KEY and KEY_FILE are set"),
        ({"KEY": "x"}, 0, "[x] []", ""),
    ],
)
def test_secrets_become_variables(repo_root: Path, tmp_path: Path, environment: dict[str, str], code: int, out: str, err: str) -> None:
    (tmp_path / "key").write_text("it's $HOME\n")
    (tmp_path / "empty").touch()
    variables = {name: value.format(folder=tmp_path) for name, value in environment.items()} | {"PATH": "/usr/bin:/bin"}
    show: Callable[..., subprocess.CompletedProcess[str]] = run
    done = show(repo_root / "infra/images/with_secrets.sh", "sh", "-c", 'printf "[%s] [%s]" "$KEY" "$KEY_FILE"', environment=variables)
    assert (done.returncode, done.stdout) == (code, out)
    assert err.format(folder=tmp_path) in done.stderr
