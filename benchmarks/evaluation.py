"""Evaluation speed: rank classification and greedy decoding from the cached prefix, against PEFT's forward and generate.

    python -m benchmarks.evaluation --repetitions 3

The engine's time includes computing the prefix, once per turn. PEFT's forward runs right-padded batches in the order of the set, and again
sorted by length. PEFT's generate runs left-padded batches, and again one prompt at a time: with padding PEFT 0.21 counts the padded places as
positions, so its texts depend on their batch mates, and only the second is the reference that the engine's texts must equal.
Results: `benchmarks/results/evaluation.json`, `.md` and `.png`.
"""

import argparse
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from benchmarks.arms import Task, as_transformers_loads_it, now, peft_model, start_values
from benchmarks.drawing import Panel, goals_table, table, with_spread
from benchmarks.measuring import goal, spread, take_turns
from benchmarks.recording import add_options, write_results
from pipeline.engine.batching import Example, scoring_order
from pipeline.engine.generation import DecodingSettings, decode_greedy
from pipeline.engine.prefix_cache import Prefix
from pipeline.engine.scoring import score_examples
from pipeline.engine.shared_prefix import encode_prefixes
from pipeline.engine.soft_prompt import SoftPrompt

TITLE = "Evaluation: the engine's cached prefix against PEFT"
ENGINE, FORWARD, SORTED = "engine", "PEFT forward", "PEFT forward, sorted by length"
GENERATE, ONE_BY_ONE = "PEFT generate, padded batches", "PEFT generate, one by one"
GOAL = 3.0

Row = dict[str, Any]
Answers = list[Any]
Turn = tuple[float, Answers]


# --- rank classification ----------------------------------------------------------------------------------------------


def engine_labels(task: Task, start: torch.Tensor, examples: Sequence[Example], batch_size: int) -> list[int]:
    """The label of each example, over one prefix for the whole set."""
    scores = score_examples(
        base=task.base, prefix=_prefix(task, start), examples=examples, verbalizers=task.verbalizers, batch_size=batch_size
    )
    return scores.argmax(-1).tolist()


def peft_labels(task: Task, model: Any, examples: Sequence[Example], batch_size: int, *, by_length: bool = False) -> list[int]:
    """The label of each example by PEFT's forward over right-padded batches."""
    order = list(scoring_order(examples, batch_size)) if by_length else _in_order(examples, batch_size)
    tokens = [ids[0] for ids in task.verbalizers.token_ids]
    labels = [-1] * len(examples)
    with torch.no_grad():
        for indices in order:
            texts = [[*task.head, *examples[index].token_ids] for index in indices]
            ids, mask = _padded(task, texts, left=False)
            logits = model(input_ids=ids, attention_mask=mask).logits
            # PEFT's logits begin with those of the virtual tokens.
            last = logits.shape[1] - ids.shape[1] + mask.sum(-1) - 1
            found = logits[torch.arange(len(texts)), last][:, tokens].float().argmax(-1).tolist()
            for index, label in zip(indices, found, strict=True):
                labels[index] = label
    return labels


# --- greedy decoding --------------------------------------------------------------------------------------------------


def engine_texts(task: Task, start: torch.Tensor, examples: Sequence[Example], batch_size: int, new_tokens: int) -> list[list[int]]:
    """The tokens of each text, all of the same length, so that every arm takes the same number of steps."""
    return decode_greedy(
        base=task.base,
        prefix=_prefix(task, start),
        prompts=[example.token_ids for example in examples],
        settings=DecodingSettings(maximum_new_tokens=new_tokens, end_tokens=(), batch_size=batch_size),
    )


def peft_texts(task: Task, model: Any, examples: Sequence[Example], batch_size: int, new_tokens: int) -> list[list[int]]:
    """The same by PEFT's generate over left-padded batches."""
    texts: list[list[int]] = []
    for indices in _in_order(examples, batch_size):
        ids, mask = _padded(task, [[*task.head, *examples[index].token_ids] for index in indices], left=True)
        with warnings.catch_warnings():
            # transformers makes the positions that PEFT warns it ignores: the reason why padding changes its texts.
            warnings.filterwarnings("ignore", "Position ids are not supported")
            generated = model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=new_tokens, do_sample=False, eos_token_id=None, pad_token_id=0
            )
        texts += generated[:, -new_tokens:].tolist()
    return texts


# --- the comparison ---------------------------------------------------------------------------------------------------


def ranking_row(task: Task, examples: Sequence[Example], *, num_virtual_tokens: int, batch_size: int, repetitions: int) -> Row:
    """Speed of the arms, and on how many examples each gives another label than the engine."""
    start = start_values(task.base, num_virtual_tokens)
    model = peft_model(task, start).eval()
    arms: dict[str, Callable[[], Answers]] = {
        FORWARD: lambda: peft_labels(task, model, examples, batch_size),
        SORTED: lambda: peft_labels(task, model, examples, batch_size, by_length=True),
        ENGINE: lambda: engine_labels(task, start, examples, batch_size),
    }
    return {"kind": "ranking", "num_virtual_tokens": num_virtual_tokens, **_compare(task, arms, len(examples), repetitions)}


def decoding_row(
    task: Task, examples: Sequence[Example], *, num_virtual_tokens: int, batch_size: int, new_tokens: int, repetitions: int
) -> Row:
    """Speed of the arms, and how many texts of each differ from the engine's."""
    start = start_values(task.base, num_virtual_tokens)
    model = peft_model(task, start).eval()
    arms: dict[str, Callable[[], Answers]] = {
        GENERATE: lambda: peft_texts(task, model, examples, batch_size, new_tokens),
        ONE_BY_ONE: lambda: peft_texts(task, model, examples, 1, new_tokens),
        ENGINE: lambda: engine_texts(task, start, examples, batch_size, new_tokens),
    }
    return {"kind": "decoding", "num_virtual_tokens": num_virtual_tokens, **_compare(task, arms, len(examples), repetitions)}


def _compare(task: Task, arms: dict[str, Callable[[], Answers]], count: int, repetitions: int) -> Row:
    turns = take_turns({name: partial(_timed, task, name, answer) for name, answer in arms.items()}, repetitions)
    ours = turns[ENGINE][0][1]
    return {
        "examples": count,
        "examples_per_second": {name: spread([count / seconds for seconds, _ in turns[name]]) for name in arms},
        "answers_unlike_the_engines": {
            name: max(sum(mine != theirs for mine, theirs in zip(ours, answers, strict=True)) for _, answers in turns[name])
            for name in arms
        },
    }


def _timed(task: Task, name: str, answer: Callable[[], Answers]) -> Turn:
    if name == ENGINE:
        started = now(task.base)
        answers = answer()
        return now(task.base) - started, answers
    with as_transformers_loads_it(task.base):
        started = now(task.base)
        answers = answer()
        return now(task.base) - started, answers


def goals(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Speed at 100 virtual tokens, and equal answers everywhere."""
    found: list[dict[str, Any]] = []
    for row in rows:
        where = f"{row['kind']}, P={row['num_virtual_tokens']}, {row['dtype']}"
        other, reference = (FORWARD, FORWARD) if row["kind"] == "ranking" else (GENERATE, ONE_BY_ONE)
        speeds = row["examples_per_second"]
        if row["num_virtual_tokens"] >= 100:
            found.append(goal(f"speed of engine over {other}, {where}", speeds[ENGINE]["median"] / speeds[other]["median"], GOAL))
        unlike = row["answers_unlike_the_engines"][reference]
        found.append(goal(f"answers of {reference} unlike the engine's, {where}", unlike, 0, at_least=False))
    return found


def tables(rows: Sequence[Row], found_goals: Sequence[dict[str, Any]]) -> list[str]:
    """The markdown tables of these rows."""
    lines = [
        [
            row["kind"],
            str(row["num_virtual_tokens"]),
            row["dtype"],
            arm,
            with_spread(speed),
            f"{row['answers_unlike_the_engines'][arm]} of {row['examples']}",
        ]
        for row in rows
        for arm, speed in row["examples_per_second"].items()
    ]
    return [table(["kind", "P", "dtype", "arm", "examples/s", "answers unlike the engine's"], lines), goals_table(found_goals)]


def run(options: argparse.Namespace) -> None:
    """Measure, and write after each row."""
    from benchmarks.demo_task import load_demo  # needs pandas and the params, which a bare machine has not

    demo = load_demo(options)
    rows: list[Row] = []
    for dtype in options.dtypes:
        base = demo.load(dtype)
        task, examples = demo.task(base), demo.tweets(base, "validation", options.examples)
        for count in options.virtual_tokens:
            sizes = {"num_virtual_tokens": count, "batch_size": options.batch_size, "repetitions": options.repetitions}
            for row in (
                ranking_row(task, examples, **sizes),
                decoding_row(task, examples[: options.prompts], **sizes, new_tokens=options.new_tokens),
            ):
                rows.append({"dtype": dtype, **row})
                _write(options, rows)
                print(tables(rows[-1:], [])[0])


def _write(options: argparse.Namespace, rows: list[Row]) -> None:
    found_goals = goals(rows)
    panels = [
        Panel(f"{row['kind']}, P={row['num_virtual_tokens']}, {row['dtype']}", "examples/s", row["examples_per_second"])
        for kind in ("ranking", "decoding")
        for row in rows
        if row["kind"] == kind
    ]
    write_results(
        "evaluation",
        title=TITLE,
        device=torch.device("cpu"),
        settings={name: vars(options)[name] for name in ("repetitions", "batch_size", "examples", "prompts", "new_tokens")},
        found={"rows": rows, "goals": found_goals},
        tables=tables(rows, found_goals),
        panels=panels,
        columns=len(options.virtual_tokens) * len(options.dtypes),
        folder=options.output,
    )


def _prefix(task: Task, start: torch.Tensor) -> Prefix:
    with torch.no_grad():
        return encode_prefixes(task.base, [SoftPrompt(start)], task.head)


def _in_order(examples: Sequence[Example], size: int) -> list[list[int]]:
    return [list(range(first, min(first + size, len(examples)))) for first in range(0, len(examples), size)]


def _padded(task: Task, texts: Sequence[Sequence[int]], *, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, both [B, T]."""
    longest = max(len(ids) for ids in texts)

    def padded(values: Sequence[int]) -> list[int]:
        filler = [0] * (longest - len(values))
        return [*filler, *values] if left else [*values, *filler]

    ids = torch.tensor([padded(text) for text in texts], device=task.base.device)
    return ids, torch.tensor([padded([1] * len(text)) for text in texts], device=task.base.device)


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, repetitions=3)
    parser.add_argument("--examples", type=int, default=128, help="tweets to label in each turn")
    parser.add_argument("--prompts", type=int, default=32, help="tweets to decode a text for in each turn")
    parser.add_argument("--new-tokens", type=int, default=8, help="length of each text")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--virtual-tokens", type=int, nargs="+", default=[20, 100])
    parser.add_argument("--dtypes", nargs="+", default=["float32"])
    return parser


def main() -> None:
    """Run from the command line."""
    run(make_parser().parse_args())


if __name__ == "__main__":
    main()
