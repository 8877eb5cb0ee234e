"""`make check-infra`: everything below infra/ that can be checked without a container engine or a cluster.

Each check returns one line per problem, and fails when it found nothing to look at. What it cannot check, and the command that would, is in
docs/operations.md. Programs are looked for beside this Python and on PATH; one that is missing is said aloud, and `--require-all` makes it a failure.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

REPOSITORY = Path(__file__).resolve().parent.parent
IMAGE = re.compile(r"(?P<repository>[a-z0-9./_-]+):(?P<tag>[A-Za-z0-9._-]+)")
EXACT_TAG = re.compile(r"v?\d+\.\d+(\.\d+)*([.-].+)?")
# A value that is a secret by its name, and not a reference to one.
SECRET_NAME = re.compile(r"(password|secret_key|access_key|auth_string|flask_secret|secret_access_key)", re.IGNORECASE)
SECRET_REFERENCE = re.compile(r"(_FILE|__FILE)$|Key$|^key|_file$|secret_name|secretName|existingSecret", re.IGNORECASE)
PREFECT_EXTENSION = "PREFECT_REDIS_"  # settings of a package that is in Prefect's image and not installed here


class Missing(Exception):
    """A program that a check needs is not installed."""


def check_compose(infra: Path) -> list[str]:
    """Compose itself reads the file, with every profile; the specification's schema agrees; images, users and secrets are as they should be."""
    file = infra / "compose" / "compose.yaml"
    problems = _fails(_program("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(file))
    described = _yaml(file)
    profiles = sorted({profile for service in described["services"].values() for profile in service.get("profiles", ())})
    with tempfile.TemporaryDirectory() as folder:
        # The services of compose read secrets from files, which must exist.
        shutil.copytree(infra, Path(folder) / "infra")
        made = subprocess.run([str(Path(folder) / "infra/compose/make_secrets.sh")], capture_output=True, text=True, check=False)
        if made.returncode:
            return [*problems, f"make_secrets.sh failed: {made.stderr.strip()}"]
        project = ["--project-directory", f"{folder}/infra/compose", "--env-file", f"{folder}/infra/compose/.env.example"]
        command = [
            _program("docker-compose"),
            *project,
            *(part for profile in profiles for part in ("--profile", profile)),
            "config",
            "--format",
            "json",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return [*problems, f"docker-compose config: {done.stderr.strip()}"]
    for name, service in json.loads(done.stdout)["services"].items():
        problems += [f"compose service {name}: {problem}" for problem in _service_problems(service)]
    unused = set(described["secrets"]) - {secret for service in described["services"].values() for secret in service.get("secrets", ())}
    unused -= {
        secret
        for part in described.values()
        if isinstance(part, dict)
        for secret in part.get("secrets", ())
        if isinstance(part.get("secrets"), list)
    }
    return problems + [f"compose secret {name} is used by no service" for name in sorted(unused)]


def _service_problems(service: Mapping[str, Any]) -> Iterator[str]:
    yield from _image_problems(service["image"])
    if service.get("privileged") or service.get("network_mode") == "host":
        yield "privileged, or on the host's network"
    if service.get("cap_drop") != ["ALL"] or "no-new-privileges:true" not in service.get("security_opt", ()):
        yield "does not drop all capabilities, or may gain new ones"
    for port in service.get("ports", ()):
        if port.get("host_ip") != "127.0.0.1":
            yield f"port {port.get('published')} listens on {port.get('host_ip') or 'every address'} by default"
    for name, value in (service.get("environment") or {}).items():
        if SECRET_NAME.search(name) and not SECRET_REFERENCE.search(name):
            yield f"{name} holds a secret: use {name}_FILE"
        if name.endswith("_FILE") and str(value).startswith("/run/secrets/"):
            mounted = {secret.get("target") or secret["source"] for secret in service.get("secrets", ())}
            if str(value).removeprefix("/run/secrets/").rpartition("/")[2] not in {Path(target).name for target in mounted}:
                yield f"{name} names {value}, which is not mounted"


def check_images(infra: Path) -> list[str]:
    """hadolint passes; the last stage is not run as root; bases are pinned; nothing secret comes in by ARG or ENV."""
    files = sorted(infra.glob("images/*.Dockerfile"))
    problems = _fails(_program("hadolint"), "--no-color", *map(str, files))
    for file in files:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()]
        words = [line.split() for line in lines if line and not line.startswith("#")]
        users = [line[1] for line in words if line[0] == "USER"]
        if not users or users[-1].split(":")[0] in ("root", "0") or not users[-1].split(":")[0].isdecimal():
            problems.append(
                f"{file.name}: the last USER must be a number other than 0, so that Kubernetes can see it is not root; found {users[-1:] or 'none'}"
            )
        for line in (line for line in words if line[0] == "FROM"):
            problems += [f"{file.name}: {problem}" for problem in _image_problems(line[1])]
        problems += [
            f"{file.name}: {word} looks like a secret in a layer"
            for line in words if line[0] in ("ARG", "ENV") for word in line[1:] if SECRET_NAME.search(word.partition("=")[0])
        ]  # fmt: skip
        copied = [line[-2] for line in words if line[0] == "COPY" and not any(part.startswith("--from") for part in line) for _ in (0,)]
        problems += [f"{file.name}: copies {path}, which does not exist" for path in copied if not (infra.parent / path).exists()]
    return problems + ([] if files else ["no image is described in infra/images"])


def _image_problems(image: str) -> list[str]:
    match = IMAGE.fullmatch(image)
    if match is None:
        return [f"image {image} has no tag"]
    if "latest" in match["tag"] or not EXACT_TAG.fullmatch(match["tag"]):
        return [f"image {image} is not pinned to a version"]
    return []


def check_kubernetes(infra: Path) -> list[str]:
    """Every manifest is valid without unknown keys; what the work pool's template makes, with its defaults, is a valid job."""
    manifests = sorted(infra.glob("kubernetes/*.yaml"))
    problems = [] if manifests else ["there is no manifest in infra/kubernetes"]
    validator = [_program("kubernetes-validate"), "--strict", "--quiet"]
    problems += [problem for file in manifests for problem in _fails(*validator, str(file))]
    for file in sorted(infra.glob("kubernetes/*_work_pool.json")):
        template = json.loads(file.read_text(encoding="utf-8"))
        job = _job(template)
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as stream:
            json.dump(job, stream)
            stream.flush()
            problems += [f"{file.name}: {problem}" for problem in _fails(*validator, stream.name)]
        problems += [f"{file.name}: {problem}" for problem in _job_problems(job)]
        placeholders = set(re.findall(r"\{\{\s*(\w+)\s*\}\}", json.dumps(template["job_configuration"])))
        declared = set(template["variables"]["properties"])
        problems += [f"{file.name}: {{{{ {name} }}}} is not declared" for name in sorted(placeholders - declared)]
        problems += [f"{file.name}: the variable {name} is used nowhere" for name in sorted(declared - placeholders)]
    return problems


def _job(template: Mapping[str, Any]) -> dict[str, Any]:
    """The job that Prefect makes of a template with its defaults, by Prefect's own substitution."""
    from prefect.utilities.templating import apply_values

    values = {name: field["default"] for name, field in template["variables"]["properties"].items() if "default" in field}
    values |= {
        "name": "a-run",
        "command": ["prefect", "flow-run", "execute"],
        "env": [{"name": "A", "value": "b"}],
        "labels": {},
        "annotations": {},
    }
    job: dict[str, Any] = apply_values(dict(template["job_configuration"]["job_manifest"]), values, remove_notset=True)
    return job


def _job_problems(job: Mapping[str, Any]) -> Iterator[str]:
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    if not (
        pod.get("securityContext", {}).get("runAsNonRoot") and container.get("securityContext", {}).get("allowPrivilegeEscalation") is False
    ):
        yield "the pod may run as root or gain privileges"
    requests, limits = container["resources"].get("requests", {}), container["resources"].get("limits", {})
    if not requests.get("nvidia.com/gpu") or requests.get("nvidia.com/gpu") != limits.get("nvidia.com/gpu"):
        yield "a GPU must be requested and limited to the same number"
    if not any(toleration.get("key") == "nvidia.com/gpu" for toleration in pod.get("tolerations", ())):
        yield "nodes with a GPU are tainted as a rule: tolerate nvidia.com/gpu"
    memory = [volume["name"] for volume in pod.get("volumes", ()) if volume.get("emptyDir", {}).get("medium") == "Memory"]
    if not any(mount["mountPath"] == "/dev/shm" and mount["name"] in memory for mount in container.get("volumeMounts", ())):
        yield "/dev/shm must be a volume in memory: 64 MiB are too little for several processes"
    if not any("secretRef" in source for source in container.get("envFrom", ())):
        yield "secrets must come by reference (envFrom.secretRef)"


def check_helm(infra: Path) -> list[str]:
    """The values files parse, pin their images, and name secrets instead of holding them."""
    files = sorted(infra.glob("helm/*.yaml"))
    problems = [] if files else ["there are no values in infra/helm"]
    for file in files:
        for path, value in _leaves(_yaml(file)):
            name = path[-1] if isinstance(path[-1], str) else path[-2]
            if name in ("tag", "prefectTag") and not EXACT_TAG.fullmatch(str(value)):
                problems.append(f"{file.name}: {_dotted(path)} is {value}, not a version")
            if SECRET_NAME.search(str(name)) and not SECRET_REFERENCE.search(_dotted(path)) and value not in (None, "", False, True):
                problems.append(f"{file.name}: {_dotted(path)} holds a secret: refer to one")
    return problems


def check_settings(infra: Path) -> list[str]:
    """Prefect and MLflow know every variable of theirs that compose, charts and images set: a misspelt one would be ignored without a word."""
    known = _known_settings()
    problems: list[str] = []
    seen = 0
    files = [
        *infra.glob("compose/compose.yaml"),
        *infra.glob("helm/*.yaml"),
        *infra.glob("images/*.Dockerfile"),
        *infra.glob("images/*.sh"),
    ]
    for file in sorted(files):
        for name in sorted(set(re.findall(r"\b(?:PREFECT|MLFLOW)_[A-Z0-9_]+\b", file.read_text(encoding="utf-8")))):
            seen += 1
            bare = name.removesuffix("_FILE").removesuffix("_")
            if bare not in known and not name.startswith(PREFECT_EXTENSION) and not _is_ours(bare, infra):
                problems.append(f"{file.name}: neither Prefect nor MLflow has a setting {bare}")
    for file in infra.glob("helm/mlflow.yaml"):
        problems += _unknown_server_options(file)
    return problems + ([] if seen else ["no setting of Prefect or MLflow was found"])


def _unknown_server_options(file: Path) -> list[str]:
    """MLflow's chart turns these values into options of `mlflow server`, whatever they are."""
    from mlflow.cli import server

    known = {option for parameter in server.params for option in parameter.opts}
    found = _yaml(file)["server"]
    options = [f"--{name.replace('_', '-')}" for name in (*found["value_options"], *found["flag_options"])]
    return [f"{file.name}: mlflow server has no option {option}" for option in options if option not in known]


def _is_ours(name: str, infra: Path) -> bool:
    """Whether compose's own .env or our MLflow start script defines the variable."""
    example = (infra / "compose" / ".env.example").read_text(encoding="utf-8")
    script = (infra / "images" / "serve_mlflow.sh").read_text(encoding="utf-8")
    return bool(re.search(rf"^{name}=", example, re.MULTILINE) or re.search(rf"\$\{{?{name}\b", script))


def _known_settings() -> set[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's tables are declared in a way that SQLAlchemy deprecates
        import mlflow.environment_variables
        from mlflow.cli import server
        from prefect.settings.legacy import _get_settings_fields
        from prefect.settings.models.root import Settings

    known = set(_get_settings_fields(Settings))
    known |= {name for name in vars(mlflow.environment_variables) if name.startswith("MLFLOW_")}
    known |= {
        variable for option in server.params for variable in ([option.envvar] if isinstance(option.envvar, str) else option.envvar or ())
    }
    return known


def check_monitoring(infra: Path) -> list[str]:
    """promtool reads configuration and rules and runs the rules' tests; every figure that rules and dashboard ask for is one that we write."""
    folder = infra / "monitoring"
    promtool = _program("promtool")
    problems = _fails(promtool, "check", "config", "--syntax-only", str(folder / "prometheus.yaml"))
    problems += _fails(promtool, "check", "rules", "--lint-fatal", str(folder / "alerts.yaml"))
    problems += _fails(promtool, "test", "rules", str(folder / "alerts_test.yaml"))
    from flows.metrics import METRICS

    text = {name: (folder / name).read_text(encoding="utf-8") for name in ("alerts.yaml", "promptmill_dashboard.json")}
    for name, content in text.items():
        asked = set(re.findall(r"\bpromptmill_[a-z_]+\b", content))
        problems += [f"{name}: nobody writes {metric}" for metric in sorted(asked - set(METRICS))]
    dashboard = json.loads(text["promptmill_dashboard.json"])
    problems += [
        f"dashboard: panels {a['title']} and {b['title']} overlap"
        for a, b in _pairs(dashboard["panels"])
        if _overlap(a["gridPos"], b["gridPos"])
    ]
    ids = [panel["id"] for panel in dashboard["panels"]]
    shown = set(re.findall(r"\bpromptmill_[a-z_]+\b", text["promptmill_dashboard.json"]))
    problems += [f"dashboard: nobody sees {metric}" for metric in sorted(set(METRICS) - shown)]
    sources = _yaml(folder / "grafana_sources.yaml")["datasources"]
    used = set(re.findall(r'"uid": "(\w+)"', text["promptmill_dashboard.json"])) - {dashboard["uid"]}
    problems += [f"dashboard: there is no data source {uid}" for uid in sorted(used - {source["uid"] for source in sources})]
    with tempfile.TemporaryDirectory() as scratch:
        rules = [
            {"record": f"dashboard:panel{index}", "expr": _plain(expression)} for index, expression in enumerate(_expressions(dashboard))
        ]
        made = Path(scratch) / "dashboard.yaml"
        made.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}), encoding="utf-8")
        problems += [f"dashboard: {problem}" for problem in _fails(promtool, "check", "rules", str(made))]
    return problems + ([] if len(set(ids)) == len(ids) > 0 else ["dashboard: panels need numbers of their own"])


def _expressions(dashboard: Mapping[str, Any]) -> list[str]:
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def _plain(expression: str) -> str:
    return expression.replace("$task", ".*")


def _pairs(panels: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    return ((a, b) for index, a in enumerate(panels) for b in panels[index + 1 :])


def _overlap(a: Mapping[str, int], b: Mapping[str, int]) -> bool:
    return a["x"] < b["x"] + b["w"] and b["x"] < a["x"] + a["w"] and a["y"] < b["y"] + b["h"] and b["y"] < a["y"] + a["h"]


def check_scripts(infra: Path) -> list[str]:
    """shellcheck has nothing to say, and the scripts can be executed."""
    scripts = sorted(infra.glob("*/*.sh"))
    problems = _fails(_program("shellcheck"), *map(str, scripts)) if scripts else ["there is no script below infra"]
    return problems + [f"{script.name} is not executable" for script in scripts if not os.access(script, os.X_OK)]


CHECKS: dict[str, Callable[[Path], list[str]]] = {
    "compose": check_compose,
    "images": check_images,
    "kubernetes": check_kubernetes,
    "helm": check_helm,
    "settings": check_settings,
    "monitoring": check_monitoring,
    "scripts": check_scripts,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the checks, print what each found, and return the exit code."""
    parser = argparse.ArgumentParser(prog="check_infra", description="Check the files below infra/.")
    parser.add_argument("--infra", type=Path, default=REPOSITORY / "infra")
    parser.add_argument("--require-all", action="store_true", help="fail when a check could not be done for want of a program")
    options = parser.parse_args(arguments)
    bad = False
    for name, check in CHECKS.items():
        try:
            problems = check(options.infra)
        except Missing as missing:
            print(f"{name}: NOT CHECKED, {missing}")
            bad = bad or options.require_all
            continue
        print(f"{name}: {len(problems)} problems" if problems else f"{name}: fine")
        print("".join(f"  {problem}\n" for problem in problems), end="")
        bad = bad or bool(problems)
    return 1 if bad else 0


def _program(name: str) -> str:
    found = shutil.which(
        name, path=os.pathsep.join((str(Path(sys.executable).parent), str(Path(sys.prefix, "bin")), os.environ.get("PATH", os.defpath)))
    )
    if found is None:
        raise Missing(f"{name} is not installed (see docs/operations.md)")
    return found


def _fails(*command: str) -> list[str]:
    """What a checking program complains about, as one entry; empty when it is content."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return [] if done.returncode == 0 else [f"{Path(command[0]).name}: {(done.stdout + done.stderr).strip()}"]


def _yaml(file: Path) -> Any:
    return YAML(typ="safe").load(file.read_text(encoding="utf-8"))


def _leaves(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, (*path, str(key)))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _leaves(item, (*path, index))
    else:
        yield path, value


def _dotted(path: tuple[str | int, ...]) -> str:
    return ".".join(map(str, path))


if __name__ == "__main__":
    sys.exit(main())
