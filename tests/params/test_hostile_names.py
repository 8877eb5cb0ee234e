"""Sixty names that must not become a path, a command, a query or a format string, at every door that takes a task's name."""

from pathlib import Path

import pytest
import yaml

from flows import cli
from pipeline.errors import ParamsError, WorkspaceError
from pipeline.layout import Layout
from pipeline.params import load

HOSTILE = [
    *("", " ", ".", "..", "../x", "../../etc/passwd", "/etc/passwd", "a/../../b", "a/b", "a\\b", "..\\x", "C:\\x", "~", "~root", "-rf", "--help", "-", "_x"),
    *("a\0b", "a\nb", "a\rb", "a\tb", "a b", " a", "a ", "a\n", "a\x1b[2J", "a\x7f", "\ufeffa", "a\u202eb", "a\u200bb", "ａ", "ä", "ß", "ı", "名前"),
    *("$HOME", "${HOME}", "$(id)", "`id`", "a;id", "a|id", "a&id", "a>x", "a<x", "a*", "a?", "[a]", "{a}", "{0}", "%s", "a%2e%2e", "a'", 'a"', "a' OR '1'='1"),
    *("a.b", "a:b", "a,b", "a=b", "a" * 65),
]  # fmt: skip
COMMANDS = ("run", "promote", "rollback", "list", "show", "predict", "reproduce", "sync")


def arguments(command: str, name: str) -> list[str]:
    extra = {"promote": ["1"], "predict": ["--text", "x"]}.get(command, [])
    return [command, "--", name, *extra] if command == "promote" else [command, *extra, "--", name]


def test_there_are_sixty() -> None:
    assert len(HOSTILE) == len(set(HOSTILE)) == 60


@pytest.mark.parametrize("name", HOSTILE)
def test_no_door_takes_it(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(WorkspaceError, match="is no task"):
        Layout(tmp_path, name)
    monkeypatch.chdir(tmp_path)
    for command in COMMANDS:
        with pytest.raises(SystemExit) as end:
            cli.main(arguments(command, name))
        assert end.value.code == 2, command
    assert "is no task" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [name for name in HOSTILE if "\0" not in name])
def test_params_refuse_it(name: str, repo_root: Path, tmp_path: Path) -> None:
    document = yaml.safe_load((repo_root / "params.yaml").read_text(encoding="utf-8"))
    document["tasks"] = {name: document["tasks"]["tweet_sentiment"]}
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(document, allow_unicode=True), encoding="utf-8")
    with pytest.raises(ParamsError, match=r"a task name is|is not valid YAML"):
        load(path)


def test_a_task_and_the_template_of_another_may_not_share_a_name(repo_root: Path, tmp_path: Path) -> None:
    document = yaml.safe_load((repo_root / "params.yaml").read_text(encoding="utf-8"))
    document["tasks"]["tweet_sentiment-template"] = document["tasks"]["tweet_sentiment"]
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    with pytest.raises(ParamsError, match="MLflow keeps the template of tweet_sentiment under this name"):
        load(path)
