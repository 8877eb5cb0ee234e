"""All measurements of the engine on the demo task, one after the other: `python -m benchmarks`.

Each part also runs alone, with options of its own: `python -m benchmarks.training --help`. The GPU's measurements are a command of
their own, `python -m benchmarks.gpu`.
"""

import argparse

from benchmarks import evaluation, quality, training, trials
from benchmarks.recording import add_options

PARTS = {"training": training, "evaluation": evaluation, "trials": trials, "quality": quality}


def main() -> None:
    """Run the parts with their defaults, but for the options they share."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=list(PARTS), help="default: all, the longest last")
    add_options(parser, repetitions=3)
    options = parser.parse_args()
    shared = {name: vars(options)[name] for name in ("repetitions", "model", "rows", "output")}
    for name in options.parts:
        part_options = PARTS[name].make_parser().parse_args([])
        PARTS[name].run(argparse.Namespace(**vars(part_options) | shared))


if __name__ == "__main__":
    main()
