"""`python -m pipeline <stage> --task <task>`: run one stage in the current workspace, as dvc.yaml does."""

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import PromptmillError
from pipeline.interruption import report_error
from pipeline.layout import PARAMS_FILE, STAGES, Layout, find_root, stage_named

try:
    from pipeline.combinations import load_runnable_task
except ModuleNotFoundError as error:
    # dvc.yaml says `python`, which is whichever comes first on PATH.
    sys.exit(
        f"error: {sys.executable} has no module {error.name!r}, so it is not the Python that promptmill is installed in. "
        'Put that one first on PATH, as in: PATH="$PWD/.venv/bin:$PATH" dvc repro'
    )

# Set by a parent that runs the stage through DVC, which passes no flags on.
VERBOSE_VARIABLE = "PROMPTMILL_VERBOSE"


def run_stage(root: Path, stage_name: str, task: str) -> None:
    """Run one stage of one task below `root`; raises PromptmillError with a message for people."""
    stage = stage_named(stage_name)
    params = load_runnable_task(root / PARAMS_FILE, task)
    layout = Layout(root, task)
    module = importlib.import_module(f"pipeline.stages.{stage.name}")
    module.run(params=params, inputs=layout.inputs(stage), outputs=layout.outputs(stage))


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, run the stage, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m pipeline", description="Run one stage of one task in this workspace.")
    parser.add_argument("stage", choices=[stage.name for stage in STAGES])
    parser.add_argument("--task", required=True, help="a name under `tasks` in params.yaml")
    parser.add_argument("--verbose", action="store_true", help="show the traceback of an error")
    options = parser.parse_args(arguments)
    try:
        run_stage(find_root(Path.cwd()), options.stage, options.task)
    except PromptmillError as error:
        if options.verbose or os.environ.get(VERBOSE_VARIABLE):
            traceback.print_exc()
        if report_error(error):
            return error.exit_code
        sys.stderr.write(f"error: stage {options.stage} of {options.task}: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
