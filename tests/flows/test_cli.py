import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flows import cli, commands
from pipeline.errors import ParamsError
from tests.flows.flow_workspace import REPOSITORY, call, environment, make_checkout, promptmill

HEAVY = ("prefect", "mlflow", "torch", "pandas", "dvc", "pydantic")
COMMANDS = (
    "run",
    "predict",
    "promote",
    "rollback",
    "list",
    "show",
    "approve",
    "reject",
    "history",
    "doctor",
    "prune",
    "why",
    "compare",
    "evaluate",
    "reproduce",
    "sync",
    "services",
    "deploy",
    "status",
    "retrain-all",
    "base-model",
    "worker",
    "ui",
    "data",
)


def test_help_loads_nothing_heavy() -> None:
    code = f"import sys, flows.cli; flows.cli.parser().format_help(); print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def subcommands(parser: Any) -> dict[str, Any]:
    """Name -> parser of the commands below a parser."""
    return next((dict(action.choices) for action in parser._actions if isinstance(action.choices, dict)), {})


def all_commands() -> dict[str, Any]:
    """Name, such as `data log`, -> parser of every command that does something."""
    below = subcommands(cli.parser())
    assert tuple(below) == COMMANDS
    data = below.pop("data")
    return below | {f"data {name}": parser for name, parser in subcommands(data).items()}


@pytest.mark.parametrize("command", all_commands())
def test_every_command_explains_itself_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.parse([*command.split(), "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert f"\n  promptmill {command}" in text
    assert "--verbose" in text


def test_the_examples_in_the_help_parse() -> None:
    import shlex

    texts = [cli.parser().format_help(), *(parser.format_help() for parser in all_commands().values())]
    examples = [line.strip() for text in texts for line in text.splitlines() if line.startswith("  promptmill ")]
    assert len(examples) >= 20
    for example in examples:
        assert callable(cli.handler(cli.parse(shlex.split(example)[1:])))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["run"], "TASK"),
        (["run", "t", "--stage-timeout", "0"], "0 is no number of seconds above 0"),
        (["run", "t", "--stage-timeout", "nan"], "nan is no number of seconds above 0"),
        (["run", "t", "--stage-timeout", "x"], "invalid"),
        (["predict", "t"], "--text"),
        (["predict", "t", "--text", "a", "--file", "b.csv"], "not allowed with argument"),
        (["predict", "t", "--text", "a", "--out", "b.csv"], "--out needs --file"),
        (["predict", "t", "--text", "a", "--engine", "ray"], "--engine ray needs --file"),
        (["predict", "t", "--file", "a.csv", "--actors", "2"], "--actors needs --engine ray"),
        (["predict", "t", "--file", "a.csv", "--engine", "ray", "--actors", "0"], "0 is not at least 1"),
        (["predict", "t", "--file", "a.csv", "--engine", "ray", "--actors", "x"], "invalid"),
        (["promote", "t"], "VERSION"),
        (["rollback", "t", "--to", "first"], "invalid int value"),
        (["data"], "SUBCOMMAND"),
        (["data", "repair"], "TASK"),
    ],
)
def test_wrong_usage_exits_with_2_and_says_what(arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert complaint in capsys.readouterr().err


def test_outside_a_checkout_the_error_is_one_line(tmp_path: Path) -> None:
    for arguments in (("run", "t"), ("list",), ("ui",), ("predict", "t", "--text", "a")):
        done = promptmill(*arguments, folder=tmp_path)
        assert done.returncode == 1
        assert done.stderr.startswith("error: No params.yaml in ")
        assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_verbose_shows_the_traceback_as_well(tmp_path: Path) -> None:
    done = promptmill("run", "t", "--verbose", folder=tmp_path)
    assert done.returncode == 1
    assert "Traceback (most recent call last)" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: No params.yaml in ")


def checkout_with_params(root: Path, text: str) -> Path:
    make_checkout(root, {})
    (root / "params.yaml").write_text(text, encoding="utf-8")
    return root


def test_all_errors_of_params_are_reported_together_with_exit_code_2(tmp_path: Path) -> None:
    text = (REPOSITORY / "params.yaml").read_text(encoding="utf-8")
    text = text.replace("learning_rate:", "learning_rat:").replace("sample_rows: 20000", "sample_rows: many")
    done = promptmill("run", "tweet_sentiment", folder=checkout_with_params(tmp_path / "w", text))
    assert done.returncode == 2
    assert "learning_rat" in done.stderr
    assert "sample_rows" in done.stderr


def test_what_the_base_model_refuses_is_an_error_of_params_before_anything_runs(tmp_path: Path) -> None:
    text = (REPOSITORY / "params.yaml").read_text(encoding="utf-8")
    text = text.replace("gradient_checkpointing: false", "gradient_checkpointing: true")
    root = checkout_with_params(tmp_path / "w", text)
    before = sorted(root.rglob("*"))
    done = promptmill("run", "tweet_sentiment", folder=root)
    assert done.returncode == 2
    head, line = done.stderr.splitlines()
    assert head == f"error: {root / 'params.yaml'} has 1 error(s); correct these keys:"
    assert line.startswith("  defaults.tune.gradient_checkpointing: gradient checkpointing is refused for the method prompt_tuning ")
    assert sorted(root.rglob("*")) == before


def test_an_unknown_task_is_named_with_the_known_ones(tmp_path: Path) -> None:
    text = (REPOSITORY / "params.yaml").read_text(encoding="utf-8")
    done = promptmill("run", "tweets", folder=checkout_with_params(tmp_path / "w", text))
    assert done.returncode == 2
    assert "'tweets'" in done.stderr
    assert "tweet_sentiment" in done.stderr


def test_each_missing_part_of_the_checkout_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "params.yaml").write_text((REPOSITORY / "params.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))

    def complaint() -> str:
        assert cli.main(["run", "tweet_sentiment"]) == 1
        return capsys.readouterr().err

    assert "is no git checkout" in complaint()
    call("git", "init", "--quiet", folder=tmp_path)
    assert "DVC is not initialised" in complaint()
    call(sys.executable, "-m", "dvc", "init", "--quiet", folder=tmp_path)
    assert "dvc.yaml does not exist" in complaint()
    (tmp_path / "dvc.yaml").write_text("stages: {}\n", encoding="utf-8")
    assert "'ingest@tweet_sentiment' not found inside 'dvc.yaml'" in complaint()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "`git` was not found" in complaint()


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (ParamsError("params.yaml: wrong"), 2, "error: params.yaml: wrong\n"),
        (
            KeyError("a\nb"),
            1,
            "error: KeyError: 'a\\nb'. This is not an error promptmill knows; run it again with --verbose to see where it arose.\n",
        ),
        (KeyboardInterrupt(), 130, "\nstopped; what was finished is kept, and the same command goes on from there\n"),
        (cli.Stopped(15), 143, "\nstopped; what was finished is kept, and the same command goes on from there\n"),
    ],
)
def test_what_a_command_raises_becomes_an_exit_code_and_a_line(
    raised: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_options: object) -> int:
        raise raised

    monkeypatch.setattr(commands, "ui", fail)
    assert cli.main(["ui"]) == code
    assert capsys.readouterr().err == said


def test_the_registry_commands_say_that_nothing_is_registered(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").touch()
    for arguments in (("list", "t"), ("show", "t"), ("promote", "t", "1"), ("rollback", "t"), ("predict", "t", "--text", "a")):
        done = promptmill(*arguments, folder=tmp_path)
        assert done.returncode == 1
        assert "nothing has been registered here yet" in done.stderr
        assert done.stderr.count("\n") == 1


def test_a_server_that_does_not_answer_is_named_outside_a_checkout(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "flows.cli", "show", "t"]
    elsewhere = {**environment(), "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    done = subprocess.run(command, cwd=tmp_path, env=elsewhere, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "http://127.0.0.1:9 does not answer" in done.stderr
