"""The engine on a GPU: training table in the GPU's data type, model FLOPs utilisation, evaluation, trials, torch.compile, packing, memory.

    python -m benchmarks.gpu --repetitions 3

needs torch, transformers, peft, accelerate and matplotlib, no network and no data: the base model is a randomly initialised Llama of 1.24
billion parameters, texts are random tokens whose lengths are spread like the tweets' (median 33, one in twenty above 57) or even from
100 to 300. Carry the folders `benchmarks/` and `pipeline/` to the machine. `--parts` runs some parts only; what a part finds is written when it ends,
and a part that fails leaves its error in the results. Results: `benchmarks/results/gpu.json`, `.md` and `.png`.

Model FLOPs utilisation counts 4 N operations per token: 2 N forward, and 2 N backward for the activations alone, since the weights take no
gradient. N is the number of the layers' parameters, without the embedding table and the output layer. Tokens are those an arm's way of
working must run: the engine's prefix once and each example's own; with PEFT the virtual tokens, the head and the text for every
example. Padding is never counted.
"""

import argparse
import math
import random
import statistics
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from benchmarks import evaluation, training, trials
from benchmarks.arms import (
    ARMS,
    ENGINE,
    TRAINER,
    Task,
    engine_learner,
    now,
    start_values,
    train_with_engine,
)
from benchmarks.drawing import Panel, goals_table, table, with_spread
from benchmarks.epochs import Batches, engine_epoch, width
from benchmarks.measuring import goal, spread, take_turns
from benchmarks.memory import peak_gpu_memory
from benchmarks.models import ONE_BILLION, TINY, random_base_model
from benchmarks.recording import add_options, write_results
from pipeline.engine.base_model import BaseModel
from pipeline.engine.batching import Example
from pipeline.engine.hardware import DTYPES, choose_device, choose_dtype, dtype_name
from pipeline.engine.methods import TunedModule
from pipeline.engine.objectives import Classification
from pipeline.engine.packing import FLEX_ATTENTION
from pipeline.engine.prefix_cache import Prefix
from pipeline.engine.shared_prefix import decoder
from pipeline.engine.template import Verbalizers
from pipeline.errors import BaseModelError

TITLE = "The engine on a GPU, randomly initialised Llama"
SHAPES = {"one_billion": ONE_BILLION, "tiny": TINY}
# Dense bfloat16 tensor-core rates of the data sheets, operations per second; the SXM versions.
DATA_SHEET = {"H100": 989.4e12, "H200": 989.4e12, "A100": 312e12}
SPEED_GOAL, UTILISATION_GOAL = 2.5, 0.5
COMPILED, PACKED, PADDED = "engine, torch.compile", "engine, packed", "engine, padded"
SHARE_OF_PEAK = 0.6  # of the memory a step needs, what the out-of-memory check leaves it

Found = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """The model, the texts and the sizes that the parts share."""

    task: Task
    texts: dict[str, list[Example]]
    options: argparse.Namespace

    @property
    def base(self) -> BaseModel:
        """The base model."""
        return self.task.base


def make_bench(options: argparse.Namespace, attention: str = "auto") -> Bench:
    """The model on the device, and random texts."""
    device = choose_device(options.device)
    dtype = DTYPES[options.dtype] if options.dtype != "auto" else choose_dtype("auto", device)
    base = random_base_model(SHAPES[options.shape], dtype=dtype, device=device, attention=attention)
    vocabulary = base.vocabulary_embeddings().shape[0]
    task = Task(base, (5, 6, 7), Verbalizers(("a", "b", "c"), ((60,), (61,), (62,))))
    texts = {kind: random_texts(kind, options.examples, vocabulary) for kind in training.TEXTS}
    return Bench(task, texts, options)


def random_texts(kind: str, count: int, vocabulary: int) -> list[Example]:
    """Random tokens with the length distribution of `kind`."""
    randomness = random.Random(0)
    examples: list[Example] = []
    for index in range(count):
        if kind == "tweets":
            # Log-normal with median 33 and 95th percentile 57; behind it the template's two tokens.
            length = 2 + min(128, max(3, round(math.exp(randomness.gauss(math.log(33), math.log(57 / 33) / 1.645)))))
        else:
            length = randomness.randint(100, 300)
        examples.append(Example([randomness.randrange(vocabulary) for _ in range(length)], index % 3))
    return examples


# --- training ---------------------------------------------------------------------------------------------------------


def training_part(bench: Bench) -> Found:
    """Part 1's table on this device, with model FLOPs utilisation."""
    options = bench.options
    product = product_rate(bench.base)
    rows: list[Found] = []
    for batch_size in options.batch_sizes:
        for kind in options.texts:
            for count in options.virtual_tokens:
                sizes = {"num_virtual_tokens": count, "batch_size": batch_size}
                cell = training.speed_rows(
                    bench.task, bench.texts[kind], ARMS, **sizes, steps=options.steps, repetitions=options.repetitions
                )
                where = {"texts": kind, **sizes, "dtype": dtype_name(bench.base.dtype)}
                rows += [where | row | _cost(bench, row, kind, product, **sizes) for row in cell]
    return {"rows": rows, "measured_matrix_product_operations_per_second": product, "layer_parameters": layer_parameters(bench.base)}


def _cost(bench: Bench, row: Found, kind: str, product: float, *, num_virtual_tokens: int, batch_size: int) -> Found:
    """Utilisation of the arm of this row, and its peak memory on a GPU."""
    per_second = row["examples_per_second"]["median"]
    tokens = tokens_of_a_step(row["arm"], row["mean_length"], num_virtual_tokens, batch_size, len(bench.task.head))
    rate = 4 * layer_parameters(bench.base) * tokens * per_second / batch_size
    cost: Found = {"tokens_of_a_step": tokens, "operations_per_second": rate, "utilisation_of_measured_product": rate / product}
    peak = data_sheet_rate(bench.base.device)
    if peak is not None:
        cost["utilisation_of_data_sheet"] = rate / peak
    if bench.base.device.type == "cuda":
        widest = max(ARMS[row["arm"]].epoch(bench.texts[kind], batch_size), key=width)
        start = start_values(bench.base, num_virtual_tokens)
        cost["peak_mebibytes"] = spread([peak_gpu_memory(bench.task, row["arm"], [widest] * 2, start) / training.MEBIBYTE])
    return cost


def tokens_of_a_step(arm: str, mean_length: float, num_virtual_tokens: int, batch_size: int, head: int) -> float:
    """Tokens that the arm's way of working must run in a step, padding left out. A key/value prefix is not run but given."""
    virtual = 0 if "prefix tuning" in arm else num_virtual_tokens
    if arm.startswith("engine"):
        return virtual + head + batch_size * mean_length
    return batch_size * (virtual + head + mean_length + 1)  # Trainer's rows end with the label's token


def layer_parameters(base: BaseModel) -> int:
    """N: parameters without the embedding table and the output layer."""
    layers: Any = decoder(base.model).layers
    return sum(parameter.numel() for parameter in layers.parameters())


def product_rate(base: BaseModel) -> float:
    """Operations per second of a large matrix product in the model's data type: what this device really gives."""
    size = 8192 if base.device.type == "cuda" else 256
    left, right = (torch.randn(size, size, device=base.device).to(base.dtype) for _ in range(2))
    seconds: list[float] = []
    for _ in range(13):
        started = now(base)
        left @ right
        seconds.append(now(base) - started)
    return 2 * size**3 / statistics.median(seconds[3:])


def data_sheet_rate(device: torch.device) -> float | None:
    """The data sheet's dense bfloat16 rate; None for a device that is not in the table."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((rate for part, rate in DATA_SHEET.items() if part in name), None)


def gradient_part(bench: Bench) -> Found:
    """The gradient against PEFT's in float32, on a model of the same shape with two layers."""
    shape = SHAPES[bench.options.shape] | {"num_hidden_layers": 2}
    base = random_base_model(shape, dtype=torch.float32, device=bench.base.device)
    task = Task(base, bench.task.head, bench.task.verbalizers)
    batch = bench.texts["tweets"][:16]
    return {"rows": training.gradient_rows(task, batch, bench.options.virtual_tokens, len(batch))}


# --- evaluation and trials --------------------------------------------------------------------------------------------


def evaluation_part(bench: Bench) -> Found:
    """Ranking and decoding against PEFT's forward and generate."""
    options, examples = bench.options, bench.texts["tweets"]
    rows: list[Found] = []
    for count in options.virtual_tokens:
        sizes = {"num_virtual_tokens": count, "batch_size": options.scoring_batch_size, "repetitions": options.repetitions}
        rows.append(evaluation.ranking_row(bench.task, examples, **sizes))
        rows.append(evaluation.decoding_row(bench.task, examples[: options.prompts], **sizes, new_tokens=options.new_tokens))
    return {"rows": [{"dtype": dtype_name(bench.base.dtype), **row} for row in rows]}


def trials_part(bench: Bench) -> Found:
    """8 trials in one batch, one by one, and with halving, at batch 16."""
    plan = trials.Plan(
        learning_rates=(0.001, 0.005),
        seeds=(0, 1, 2, 3),
        num_virtual_tokens=20,
        batch_size=16,
        steps=bench.options.trial_steps,
        evaluate_every=max(1, bench.options.trial_steps // 4),
    )
    examples = bench.texts["tweets"]
    found = trials.compare(bench.task, plan, examples[64:], examples[:64], bench.options.repetitions)
    return {**found, "goals": trials.goals(found, bench.base.device.type, dtype_name(bench.base.dtype))}


# --- what may pay -----------------------------------------------------------------------------------------------------


def compile_part(bench: Bench) -> Found:
    """The engine's step with its decoder compiled by torch.compile, and as it is."""
    module: Any = decoder(bench.base.model)
    module.compile(dynamic=True, backend=bench.options.compile_backend)
    compiled, module._compiled_call_impl = module._compiled_call_impl, None

    @contextmanager
    def compiling() -> Generator[None]:
        module._compiled_call_impl = compiled
        try:
            yield
        finally:
            module._compiled_call_impl = None

    batches = _step_batches(bench)
    start = start_values(bench.base, 20)

    def train_compiled() -> float:
        with compiling():
            return _examples_per_second(bench, batches, start)

    started = time.perf_counter()
    train_compiled()
    seconds = time.perf_counter() - started
    speeds = take_turns({ENGINE: partial(_examples_per_second, bench, batches, start), COMPILED: train_compiled}, bench.options.repetitions)
    return {"examples_per_second": {name: spread(values) for name, values in speeds.items()}, "seconds_of_first_run": seconds}


def packing_part(bench: Bench) -> Found:
    """FlexAttention over packed rows against padded rows, for texts of very different length in one batch and for sorted ones."""
    packed = make_bench(bench.options, FLEX_ATTENTION)
    start = start_values(bench.base, 20)
    examples = bench.texts["tweets"]
    size = bench.options.batch_sizes[0]
    found: Found = {}
    for order, epoch in (("sorted by length", engine_epoch), ("random order", ARMS[TRAINER].epoch)):
        batches = epoch(examples, size)[: bench.options.steps + 1]
        _examples_per_second(packed, batches, start)  # compiles FlexAttention for these shapes
        speeds = take_turns(
            {
                PADDED: partial(_examples_per_second, bench, batches, start),
                PACKED: partial(_examples_per_second, packed, batches, start),
            },
            bench.options.repetitions,
        )
        found[order] = {name: spread(values) for name, values in speeds.items()}
    gradients = [_gradient(one.task, examples[:size], start)[0] for one in (bench, packed)]
    return {"examples_per_second": found, "gradient_difference": _relative(gradients[1], gradients[0])}


def out_of_memory_part(bench: Bench) -> Found:
    """A step in less memory than it needs: how many rows it then ran at once, and how far its gradient is from the whole batch's."""
    start = start_values(bench.base, 20)
    batch = bench.texts["longer texts"][: bench.options.out_of_memory_batch]
    whole, _, peak = _gradient(bench.task, batch, start)
    with less_memory(bench, peak, len(batch)) as objective:
        halved, rows_at_once, _ = _gradient(bench.task, batch, start, objective)
    return {
        "batch_size": len(batch),
        "rows_at_once": rows_at_once,
        "peak_mebibytes_of_the_whole_batch": peak / training.MEBIBYTE,
        "gradient_difference": _relative(halved, whole),
        "goals": [goal("rows at once after running out of memory, below the batch", rows_at_once, len(batch) - 1, at_least=False)],
    }


@contextmanager
def less_memory(bench: Bench, peak: int, batch_size: int) -> Generator[Classification]:
    """On a GPU torch may take only a part of what the step needs; elsewhere the objective refuses more than a third of the batch."""
    objective = Classification(bench.task.verbalizers)
    if bench.base.device.type != "cuda":
        yield Refusing(bench.task.verbalizers, largest=max(1, batch_size // 3))
        return
    torch.cuda.empty_cache()
    allowed = torch.cuda.memory_allocated() + SHARE_OF_PEAK * peak
    torch.cuda.set_per_process_memory_fraction(allowed / torch.cuda.get_device_properties(bench.base.device).total_memory)
    try:
        yield objective
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@dataclass(frozen=True)
class Refusing(Classification):
    """An objective for which more than `largest` examples never fit, as on a full GPU."""

    largest: int = 1

    def losses(self, base: BaseModel, prefix: Prefix, rows: Sequence[int], examples: Sequence[Example]) -> torch.Tensor:
        """Loss of each example [B]; raises torch.cuda.OutOfMemoryError."""
        if len(examples) > self.largest:
            raise torch.cuda.OutOfMemoryError(f"{len(examples)} examples, {self.largest} fit")
        return super().losses(base, prefix, rows, examples)


def _gradient(
    task: Task, batch: Sequence[Example], start: torch.Tensor, objective: Classification | None = None
) -> tuple[torch.Tensor, int, int]:
    """The soft prompt's gradient, the rows run at once, and the bytes a GPU held for it at most."""
    learner = engine_learner(task, start)
    learner.rows_at_once = len(batch)
    if objective is not None:
        learner.objective = objective
    on_gpu = task.base.device.type == "cuda"
    before = torch.cuda.memory_allocated() if on_gpu else 0
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    learner.backward({0: batch}, 1 / len(batch))
    module = learner.modules[0]
    assert isinstance(module, TunedModule)
    gradient = next(parameter for parameter in module.parameters() if parameter.requires_grad).grad
    assert gradient is not None
    return gradient, learner.rows_at_once or len(batch), torch.cuda.max_memory_allocated() - before if on_gpu else 0


def _relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def _step_batches(bench: Bench) -> Batches:
    return training.timed_batches(ARMS[ENGINE], bench.texts["tweets"], bench.options.batch_sizes[0], bench.options.steps)


def _examples_per_second(bench: Bench, batches: Batches, start: torch.Tensor) -> float:
    run = train_with_engine(bench.task, batches, start)
    return len(batches[0]) * len(run.seconds[1:]) / sum(run.seconds[1:])


# --- results ----------------------------------------------------------------------------------------------------------

PARTS: dict[str, Callable[[Bench], Found]] = {
    "training": training_part,
    "gradient": gradient_part,
    "evaluation": evaluation_part,
    "trials": trials_part,
    "compile": compile_part,
    "packing": packing_part,
    "out_of_memory": out_of_memory_part,
}


def goals(found: Found) -> list[dict[str, Any]]:
    """All parts' goals together."""
    listed: list[dict[str, Any]] = []
    for cell in _cells(found.get("training", {}).get("rows", [])):
        by_arm = {row["arm"]: row for row in cell}
        where = f"{training.cell_name(cell[0])}, batch {cell[0]['batch_size']}"
        ratio = by_arm[ENGINE]["examples_per_second"]["median"] / by_arm[TRAINER]["examples_per_second"]["median"]
        listed.append(goal(f"speed of engine over {TRAINER}, {where}", ratio, SPEED_GOAL))
        best = by_arm[ENGINE].get("utilisation_of_data_sheet", by_arm[ENGINE]["utilisation_of_measured_product"])
        listed.append(goal(f"model FLOPs utilisation of engine, {where}", best, UTILISATION_GOAL))
    for row in found.get("gradient", {}).get("rows", []):
        name = f"gradient's relative error, {row['method']}, P={row['num_virtual_tokens']}, float32, two layers"
        listed.append(goal(name, row["relative_error"], training.GRADIENT_GOAL, at_least=False))
    listed += evaluation.goals(found.get("evaluation", {}).get("rows", []))
    for part in ("trials", "out_of_memory"):
        listed += found.get(part, {}).get("goals", [])
    return listed


def tables(found: Found, found_goals: Sequence[dict[str, Any]]) -> list[str]:
    """The markdown tables of the parts that ran."""
    parts: list[str] = []
    rows = found.get("training", {}).get("rows", [])
    if rows:
        header = ["texts", "batch", "P", "arm", "examples/s", "peak MiB above the weights", "utilisation: data sheet / measured product"]
        parts.append(table(header, [_training_line(row) for row in rows]))
    if "rows" in found.get("evaluation", {}):
        parts.append(evaluation.tables(found["evaluation"]["rows"], [])[0])
    if "seconds" in found.get("trials", {}):
        parts.append(trials.tables(found["trials"], [])[0])
    for name, speeds in _variants(found).items():
        parts.append(table([name, "examples/s"], [[arm, with_spread(speed)] for arm, speed in speeds.items()]))
    failures = [[part, result["error"]] for part, result in found.items() if "error" in result]
    if failures:
        parts.append(table(["part that failed", "error"], failures))
    return [*parts, goals_table(found_goals)]


def _training_line(row: Found) -> list[str]:
    sheet = f"{row['utilisation_of_data_sheet']:.2f}" if "utilisation_of_data_sheet" in row else "-"
    memory = with_spread(row["peak_mebibytes"]) if "peak_mebibytes" in row else "-"
    speed = with_spread(row["examples_per_second"])
    measured = f"{row['utilisation_of_measured_product']:.2f}"
    return [row["texts"], str(row["batch_size"]), str(row["num_virtual_tokens"]), row["arm"], speed, memory, f"{sheet} / {measured}"]


def _variants(found: Found) -> dict[str, dict[str, Any]]:
    """Speeds of the engine's variants by what was varied."""
    variants: dict[str, dict[str, Any]] = {}
    if "examples_per_second" in found.get("compile", {}):
        variants["torch.compile"] = found["compile"]["examples_per_second"]
    for order, speeds in found.get("packing", {}).get("examples_per_second", {}).items():
        variants[f"packing, {order}"] = speeds
    return variants


def panels(found: Found) -> list[Panel]:
    """Training cells, then evaluation, trials and variants."""
    drawn = [
        Panel(
            f"training, {cell[0]['texts']}, P={cell[0]['num_virtual_tokens']}, batch {cell[0]['batch_size']}",
            "examples/s",
            {row["arm"]: row["examples_per_second"] for row in cell},
        )
        for cell in _cells(found.get("training", {}).get("rows", []))
    ]
    drawn += [
        Panel(f"{row['kind']}, P={row['num_virtual_tokens']}", "examples/s", row["examples_per_second"])
        for row in found.get("evaluation", {}).get("rows", [])
    ]
    if "seconds" in found.get("trials", {}):
        drawn.append(Panel("8 trials", "seconds", found["trials"]["seconds"]))
    return drawn + [Panel(name, "examples/s", speeds) for name, speeds in _variants(found).items()]


def _cells(rows: Sequence[Found]) -> list[list[Found]]:
    by_cell: dict[tuple[Any, ...], list[Found]] = {}
    for row in rows:
        by_cell.setdefault((row["texts"], row["batch_size"], row["num_virtual_tokens"]), []).append(row)
    return list(by_cell.values())


def run(options: argparse.Namespace) -> None:
    """Run the parts; write what there is after each."""
    bench = make_bench(options)
    found: Found = {}
    for part in options.parts:
        started = time.perf_counter()
        try:
            found[part] = PARTS[part](bench)
        except (
            RuntimeError,
            ValueError,
            ImportError,
            BaseModelError,
        ) as error:  # one part that this machine cannot run must not cost the others
            found[part] = {"error": " ".join(str(error).split())[:300]}
        found[part]["seconds_of_part"] = round(time.perf_counter() - started, 1)
        _write(options, bench, found)
        print(part, f"{found[part]['seconds_of_part']} s", found[part].get("error", ""), flush=True)
    print("\n".join(tables(found, goals(found))))


def _write(options: argparse.Namespace, bench: Bench, found: Found) -> None:
    found_goals = goals(found)
    settings = {name: value for name, value in vars(options).items() if name not in ("output", "model", "rows")}
    write_results(
        "gpu",
        title=f"{TITLE}, {dtype_name(bench.base.dtype)}",
        device=bench.base.device,
        settings=settings | {"base_model": bench.base.source["id"], "attention": bench.base.attention},
        found={**found, "goals": found_goals},
        tables=tables(found, found_goals),
        panels=panels(found),
        columns=2,
        folder=options.output,
    )


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, repetitions=3)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--shape", choices=list(SHAPES), default="one_billion")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", choices=["auto", *DTYPES])
    parser.add_argument("--examples", type=int, default=2048)
    parser.add_argument("--texts", nargs="+", choices=training.TEXTS, default=list(training.TEXTS))
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[16, 128])
    parser.add_argument("--virtual-tokens", type=int, nargs="+", default=[20, 100])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--scoring-batch-size", type=int, default=64)
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--trial-steps", type=int, default=24)
    parser.add_argument("--compile-backend", default="inductor")
    parser.add_argument("--out-of-memory-batch", type=int, default=256)
    return parser


def main() -> None:
    """Run from the command line."""
    run(make_parser().parse_args())


if __name__ == "__main__":
    main()
