"""How good the demo's tuned prompt is, and how much that depends on the seed.

    python -m benchmarks.demo_quality --more-seeds 1 2 --long-steps 480

takes the checkout's own run as it is (make it with `promptmill run tweet_sentiment` or `dvc repro`), then tunes and evaluates on
the same splits for each further seed, and once for longer with the checkout's seed, in folders of their own. Results go to
`benchmarks/results/demo_quality.json` and, as a table, to `benchmarks/results/demo_quality.md`.
"""

import argparse
import platform
import statistics
import tempfile
from pathlib import Path
from typing import Any

from pipeline.engine.predicting import load_predictor
from pipeline.layout import Layout, find_root, stage_named
from pipeline.manifest import verify_bundle
from pipeline.params import TaskParams, load_task
from pipeline.records import read_json, read_jsonl, read_parquet, write_json, write_parquet
from pipeline.stages import evaluate, tune

TASK = "tweet_sentiment"
RESULTS = Path(__file__).parent / "results"


def measure(params: TaskParams, checkout: Layout, folder: Path) -> dict[str, Any]:
    """Tune in `folder` with the splits of `checkout`, label its test rows, and evaluate against its baselines.

    The baselines do not depend on the seed, so the checkout's own predictions of them are used.
    """
    made = Layout(folder, TASK)
    tune.run(params=params, inputs=checkout.inputs(stage_named("tune")), outputs=made.outputs(stage_named("tune")))
    predictions, test = read_parquet(checkout.path("predictions")), read_parquet(checkout.path("test"))
    predictor = load_predictor(made.path("bundle"))
    probabilities = predictor.predict(test[list(predictor.fields)].to_dict(orient="records"))
    tuned = predictions["variant"] == "tuned"
    if predictions.loc[tuned, "row_id"].to_list() != test["row_id"].to_list():
        raise SystemExit(f"{checkout.path('predictions')} is not of the present test split; run `promptmill run {TASK}` first.")
    predictions.loc[tuned, [f"p.{label}" for label in predictor.labels]] = probabilities.astype(float)
    predictions.loc[tuned, "prediction"] = [predictor.labels[index] for index in probabilities.argmax(axis=1)]
    write_parquet(made.path("predictions"), predictions)
    evaluate.run(params=params, inputs=made.inputs(stage_named("evaluate")), outputs=made.outputs(stage_named("evaluate")))
    return figures(params, made)


def figures(params: TaskParams, made: Layout) -> dict[str, Any]:
    """What the outputs in `made`, a run of `params`, say."""
    metrics, manifest = read_json(made.path("metrics")), verify_bundle(made.path("bundle"))
    return {
        "seed": manifest["training"]["seed"],
        "maximum_steps": params.tune.maximum_steps,
        "best_step": manifest["training"]["best_step"],
        "accuracy": {name: variant["accuracy"]["value"] for name, variant in metrics["variants"].items()},
        "macro_f1": {name: variant["macro_f1"]["value"] for name, variant in metrics["variants"].items()},
        "gain": metrics["comparisons"]["tuned_minus_hard_prompt"]["accuracy"],
        "rows": metrics["n"],
        "seconds_of_steps": round(sum(record.get("seconds", 0.0) for record in read_jsonl(made.path("train_log"))), 1),
        "soft_prompt_sha256": manifest["soft_prompt"]["sha256"],
        "hardware": manifest["hardware"],
    }


def changed(params: TaskParams, **tune_params: Any) -> TaskParams:
    """The params with other values in the tune section."""
    return params.model_copy(update={"tune": params.tune.model_copy(update=tune_params)})


def table(runs: list[dict[str, Any]]) -> str:
    """Markdown: a line per run, then mean and standard deviation over the seeds of the demo's own length."""
    lines = [
        "| seed | steps | best step | accuracy | macro F1 | gain over the best hard prompt | seconds in steps |",
        "|---|---|---|---|---|---|---|",
    ]
    for run in runs:
        gain = run["gain"]
        lines.append(
            f"| {run['seed']} | {run['maximum_steps']} | {run['best_step']} | {run['accuracy']['tuned']:.3f} | {run['macro_f1']['tuned']:.3f} "
            f"| {gain['value']:.3f} ({gain['low']:.3f} to {gain['high']:.3f}) | {run['seconds_of_steps']:.0f} |"
        )
    same = [run for run in runs if run["maximum_steps"] == runs[0]["maximum_steps"]]
    for name, values in (
        ("accuracy", [run["accuracy"]["tuned"] for run in same]),
        ("macro F1", [run["macro_f1"]["tuned"] for run in same]),
        ("gain", [run["gain"]["value"] for run in same]),
    ):
        spread = f", standard deviation {statistics.stdev(values):.3f}" if len(values) > 1 else ""
        lines.append(f"\n{name} over {len(values)} seed(s) of {same[0]['maximum_steps']} steps: mean {statistics.mean(values):.3f}{spread}")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the measurements and write them after each run, so that an interrupted one keeps what it has."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--more-seeds", type=int, nargs="*", default=[1, 2], help="seeds to run besides the checkout's own")
    parser.add_argument("--long-steps", type=int, default=0, help="also one run of this many steps (0: none)")
    options = parser.parse_args()
    root = find_root(Path.cwd())
    params = load_task(root / "params.yaml", TASK)
    plans = [changed(params, trials=params.tune.trials.model_copy(update={"seeds": [seed]})) for seed in options.more_seeds]
    if options.long_steps:
        plans.append(
            changed(
                params,
                maximum_steps=options.long_steps,
                evaluate_every=max(1, options.long_steps // 8),
                early_stopping_patience=8,
            )
        )
    runs = [figures(params, Layout(root, TASK))]
    for plan in plans:
        with tempfile.TemporaryDirectory() as folder:
            runs.append(measure(plan, Layout(root, TASK), Path(folder)))
        RESULTS.mkdir(exist_ok=True)
        write_json(RESULTS / "demo_quality.json", {"machine": platform.platform(), "runs": runs})
        (RESULTS / "demo_quality.md").write_text(table(runs), encoding="utf-8")
        print(table(runs))


if __name__ == "__main__":
    main()
