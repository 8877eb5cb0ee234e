"""The command `promptmill`. Parsing only: what a subcommand does, and every slow import, is behind it in `flows.commands`.

The modules of MODULES declare subcommands of their own, and `promptmill data` gathers those that the modules of DATA_MODULES declare;
each handler lies in the module that declares it.
"""

import argparse
import importlib
import signal
import sys
import traceback
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from pipeline.errors import PromptmillError
from pipeline.layout import TASK_NAME, TASK_NAME_RULE

UNEXPECTED_EXIT_CODE = 1

DATA_MODULES = ("flows.data_versions", "flows.data_quarantine", "flows.data_drift")
MODULES = (
    "flows.registry_commands",
    "flows.why",
    "flows.compare",
    "flows.evaluate",
    "flows.reproduce_command",
    "flows.sync",
    "flows.services_command",
    "flows.deploy",
    "flows.status_command",
    "flows.fleet_command",
    "flows.worker_command",
)

DESCRIPTION = "Turn labelled text into tuned prompts: validated, trained, measured, gated, versioned and promoted."

EXIT_CODES = """\
exit codes:
  0  done             1  error                3  not promoted: gate, person or uncommitted changes
  2  wrong usage or params.yaml                4  the data drifted
  5  not reproduced                          75  try again later: MLflow did not answer
  6  waits for a person's approval           130  stopped by Ctrl-C

examples:
  promptmill run tweet_sentiment
  promptmill predict tweet_sentiment --text "Thank you for the upgrade!"
  promptmill list
  promptmill reproduce tweet_sentiment
  promptmill ui
"""


class Stopped(KeyboardInterrupt):
    """A signal asked this process to end; it takes the way of a Ctrl-C, so that nothing it started stays behind."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.exit_code = 128 + signal_number


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, run the subcommand and return the exit code (argparse itself exits with 2 on wrong usage)."""
    options = parse(arguments)
    try:
        with _signals_as_interrupts():
            return int(handler(options)(options))
    except PromptmillError as error:
        return _fail(str(error), error.exit_code, options.verbose)
    except KeyboardInterrupt as stop:
        sys.stderr.write("\nstopped; what was finished is kept, and the same command goes on from there\n")
        return stop.exit_code if isinstance(stop, Stopped) else 128 + signal.SIGINT
    except Exception as error:  # noqa: BLE001  the last resort of the command line: one line for people, --verbose for the rest
        detail = " ".join(str(error).split())
        advice = "" if options.verbose else " This is not an error promptmill knows; run it again with --verbose to see where it arose."
        return _fail(f"{type(error).__name__}: {detail}.{advice}", UNEXPECTED_EXIT_CODE, options.verbose)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of a command line; exits with 2 and the usage when it is wrong."""
    known = parser()
    options = known.parse_args(arguments)
    if options.command == "predict" and options.out and not options.file:
        known.error("--out needs --file: answers to --text are printed")
    if options.command == "predict" and options.engine == "ray" and not options.file:
        known.error("--engine ray needs --file: a few texts are answered faster here")
    if options.command == "predict" and options.actors and options.engine != "ray":
        known.error("--actors needs --engine ray")
    task = getattr(options, "task", None)
    if task is not None and not TASK_NAME.fullmatch(task.partition("@")[0]):
        known.error(f"argument TASK: {task!r} is no task: {TASK_NAME_RULE}")
    return options


def handler(options: argparse.Namespace) -> Callable[[argparse.Namespace], int]:
    """The function behind the subcommand that was parsed; its module is imported here."""
    return getattr(importlib.import_module(options.module), options.command)


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    verbose = argparse.ArgumentParser(add_help=False)
    verbose.add_argument("--verbose", action="store_true", help="show the traceback of an error, and Prefect's own log lines")
    top = argparse.ArgumentParser(
        prog="promptmill", description=DESCRIPTION, epilog=EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = top.add_subparsers(metavar="COMMAND", required=True, title="commands")
    add = _adder(commands, verbose, "flows.commands")
    _add_run(add)
    _add_predict(add)
    _add_registry_commands(add)
    for module in MODULES:
        importlib.import_module(module).add_commands(_adder(commands, verbose, module))
    add("ui", "ui", "serve the Prefect and MLflow pages of this checkout until Ctrl-C", "promptmill ui")
    _add_data(commands, verbose)
    return top


def _adder(commands: Any, verbose: argparse.ArgumentParser, module: str) -> Callable[..., argparse.ArgumentParser]:
    """A function that declares a subcommand: its name, the function of `module` behind it, one line on it, and examples."""

    def add(name: str, function: str, summary: str, *examples: str, epilog: str = "") -> argparse.ArgumentParser:
        text = "\n".join(("examples:", *(f"  {example}" for example in examples)))
        command: argparse.ArgumentParser = commands.add_parser(
            name, help=summary, description=f"{summary[0].upper()}{summary[1:]}. {epilog}".strip(), epilog=text, parents=[verbose],
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        command.set_defaults(module=module, command=function)
        return command

    return add


def _add_data(commands: Any, verbose: argparse.ArgumentParser) -> None:
    summary = "look after the data of a task: where it comes from, its versions, what was set aside, drift"
    data = commands.add_parser("data", help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
    below = data.add_subparsers(metavar="SUBCOMMAND", required=True, title="subcommands")
    for module in DATA_MODULES:
        importlib.import_module(module).add_commands(_adder(below, verbose, module))


def _add_run(add: Any) -> None:
    command = add(
        "run", "run", "bring a task up to date: all stages, MLflow record, version, gate, champion",
        "promptmill run tweet_sentiment", "promptmill run tweet_sentiment --stage-timeout 600",
        epilog="Stages that did not change are reused.",
    )  # fmt: skip
    command.add_argument("task", metavar="TASK", help="a name under `tasks` in params.yaml")
    command.add_argument(
        "--stage-timeout", type=_seconds, default=6 * 3600.0, metavar="SECONDS", help="time limit of each stage (default: 6 hours)"
    )


def _add_predict(add: Any) -> None:
    command = add(
        "predict", "predict", "label texts with a registered version",
        'promptmill predict tweet_sentiment --text "Thank you for the upgrade!"',
        'promptmill predict tweet_sentiment --text "Late again" --text "Great crew" --format json',
        "promptmill predict tweet_sentiment --file in.csv --out out.csv --version challenger",
        "promptmill predict tweet_sentiment --file in.parquet --out out.parquet --engine ray --actors 8",
        epilog="A file has one column per field of the template; its other columns are kept. It is Parquet when its name ends in .parquet, else CSV in"
        " UTF-8. With --out it is answered batch by batch and may be larger than memory.",
    )  # fmt: skip
    command.add_argument("task", metavar="TASK")
    source = command.add_mutually_exclusive_group(required=True)
    source.add_argument("--text", action="append", metavar="TEXT", help="a text to label; may be given several times")
    source.add_argument("--file", type=Path, metavar="FILE", help="a CSV or Parquet file to label")
    command.add_argument("--out", type=Path, metavar="FILE", help="with --file: write its rows with `label` and `p.<label>` here")
    command.add_argument("--version", default="champion", metavar="N|ALIAS", help="a version number or alias (default: champion)")
    command.add_argument("--format", choices=("table", "json"), default="table", help="how to print the answers (default: table)")
    command.add_argument(
        "--engine", choices=("local", "ray"), default="local",
        help="with --file: `ray` answers on the Ray cluster of RAY_ADDRESS, or on one of its own for as long as it takes (default: local)",
    )  # fmt: skip
    command.add_argument("--actors", type=_at_least_one, metavar="N", help="with --engine ray: how many load the prompt (default: 2)")


def _add_registry_commands(add: Any) -> None:
    command = add(
        "promote",
        "promote",
        "make a version champion, if the gate let it pass",
        "promptmill promote tweet_sentiment 3",
        "promptmill promote tweet_sentiment challenger",
    )
    command.add_argument("task", metavar="TASK")
    command.add_argument("version", metavar="VERSION", help="a version number or alias")
    command.add_argument("--reason", metavar="TEXT", help="why; it is kept in the journal")

    command = add(
        "rollback",
        "rollback",
        "make an earlier champion the champion again",
        "promptmill rollback tweet_sentiment",
        "promptmill rollback tweet_sentiment --to 2",
    )
    command.add_argument("task", metavar="TASK")
    command.add_argument("--to", type=int, metavar="VERSION", help="which one (default: the champion before the present one)")
    command.add_argument("--reason", metavar="TEXT", help="why; it is kept in the journal")

    command = add(
        "list", "list_versions", "list the versions of a task, or of all tasks", "promptmill list", "promptmill list tweet_sentiment --json"
    )
    command.add_argument("task", metavar="TASK", nargs="?")
    command.add_argument("--json", action="store_true", help="print JSON")

    command = add(
        "show",
        "show",
        "show one version with its metrics and params",
        "promptmill show tweet_sentiment",
        "promptmill show tweet_sentiment@3",
        "promptmill show tweet_sentiment@challenger --json",
    )
    command.add_argument("task", metavar="TASK[@VERSION|@ALIAS]", help="without a version: the champion")
    command.add_argument("--json", action="store_true", help="print JSON")


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds above 0")
    return seconds


def _at_least_one(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return count


def _fail(message: str, exit_code: int, verbose: bool) -> int:
    if verbose:
        traceback.print_exc()
    sys.stderr.write(f"error: {message}\n")
    return exit_code


@contextmanager
def _signals_as_interrupts() -> Generator[None]:
    """Turn SIGTERM and SIGHUP into an exception: their default ends this process at once and would orphan the stage."""

    def stop(signal_number: int, _frame: FrameType | None) -> NoReturn:
        raise Stopped(signal_number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
