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
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)} (default: all, the longest last)")
    add_options(parser, repetitions=None)
    options = parser.parse_args()
    unknown = [name for name in options.parts if name not in PARTS]
    if unknown:
        parser.error(f"no such parts: {unknown}; there are {list(PARTS)}")
    given = {name: value for name, value in vars(options).items() if name != "parts" and value is not None}
    for name in options.parts or PARTS:
        PARTS[name].run(argparse.Namespace(**vars(PARTS[name].make_parser().parse_args([])) | given))


if __name__ == "__main__":
    main()
