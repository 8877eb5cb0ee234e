"""Stage probe: what the tuned prompt answers to changed test rows, ready-made pairs and cases, and how likely it finds stereotypes.

Nothing is asked that `behaviour` does not name; without any probe the base model is not even loaded.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.behaviour.pair_files import TextPair, read_pairs
from pipeline.behaviour.probes import ALONE, HeldOutRow, Probe, plan_probes
from pipeline.engine.batching import Example
from pipeline.engine.likelihood import Likelihood, likelihood_obstacle, text_likelihoods
from pipeline.engine.predicting import Predictor, load_predictor
from pipeline.engine.ranking import pass_for
from pipeline.examples import task_base_model
from pipeline.layout import Paths, find_root
from pipeline.manifest import verify_bundle
from pipeline.params import PairFile, TaskParams
from pipeline.progress import Progress
from pipeline.records import read_parquet, write_json, write_parquet

ANSWER_COLUMNS = ("probe", "row_id", "side", "text", "label", "prediction")
BIAS_COLUMNS = ("file", "number", "kind", "side", "prompt", "text", "log_probability", "tokens")

# A file's texts: the pair each is of and which side of it.
Texts = Mapping[str, Sequence[tuple[TextPair, str, str]]]


def run(*, params: TaskParams, inputs: Paths, outputs: Paths) -> dict[str, Any]:
    """Write `behaviour_predictions`, `bias_scores` and `probe_report`; returns the report. Raises SourceError for a file of pairs."""
    section = params.behaviour
    root = find_root(outputs.probe_report.parent)
    pairs, pair_files = _read(section.pairs, root)
    bias, bias_files = _read(section.bias_pairs, root)
    rows = _test_rows(params, inputs.test) if section.asks_labels else []
    plan = plan_probes(section, rows, pairs, list(params.ingest.columns.fields))
    answers, scores, skipped = _ask(params, inputs.bundle, plan.probes, {name: _texts(found) for name, found in bias.items()})
    write_parquet(outputs.behaviour_predictions, answers)
    write_parquet(outputs.bias_scores, scores)
    report = {
        "task": outputs.probe_report.parent.name,
        "searched": dict(plan.searched),
        "pairs": pair_files,
        "bias_pairs": bias_files,
        "bias_skipped": skipped,
    }
    write_json(outputs.probe_report, report)
    return report


def _read(files: Mapping[str, PairFile], root: Path) -> tuple[dict[str, list[TextPair]], dict[str, Any]]:
    """The pairs of each file, and what the report says of it."""
    pairs: dict[str, list[TextPair]] = {}
    described: dict[str, Any] = {}
    for name, file in files.items():
        pairs[name], sha256 = read_pairs(name, file, root)
        described[name] = {"format": file.format, "package": file.package, "path": file.path, "sha256": sha256, "pairs": len(pairs[name])}
    return pairs, described


def _test_rows(params: TaskParams, path: Path) -> list[HeldOutRow]:
    """The test split in the order of the row ids, which are hashes of the content: the first ones are a random sample."""
    fields = list(params.ingest.columns.fields)
    frame = read_parquet(path, ["row_id", "label", *fields]).sort_values("row_id")
    columns = [frame[name].astype(str).tolist() for name in ("row_id", "label", *fields)]
    return [HeldOutRow(row_id, dict(zip(fields, texts, strict=True)), label) for row_id, label, *texts in zip(*columns, strict=True)]


def _texts(pairs: Sequence[TextPair]) -> list[tuple[TextPair, str, str]]:
    """(pair, side, text) of every text of the pairs."""
    sides = [(pair, side, getattr(pair, side)) for pair in pairs for side in ("first", "second", "unrelated")]
    return [(pair, side, text) for pair, side, text in sides if text is not None]


def _ask(params: TaskParams, bundle: Path, probes: Sequence[Probe], bias: Texts) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, str]]:
    """The answers to all probes, the likelihoods of all texts of `bias`, and the files without likelihoods with the reason."""
    if not probes and not bias:
        return _answers(params, [], []), pd.DataFrame(columns=pd.Index(BIAS_COLUMNS)), {}
    verify_bundle(bundle)
    predictor = load_predictor(bundle, base=task_base_model(params))
    obstacle = likelihood_obstacle(predictor.base, pass_for(predictor.base)) if bias else None
    asked = {} if obstacle else bias
    with Progress("probe", len(probes) + 2 * sum(map(len, asked.values())), "text") as progress:
        answers = _answers(params, probes, _rank(predictor, probes, params.score.batch_size, progress))
        lines = list(_likelihoods(predictor, bundle, asked, params.score.batch_size, progress))
    return answers, pd.DataFrame(lines, columns=pd.Index(BIAS_COLUMNS)), dict.fromkeys(bias, obstacle) if obstacle else {}


def _rank(predictor: Predictor, probes: Sequence[Probe], batch_size: int, progress: Progress) -> list[list[float]]:
    """Label probabilities of every probe; the same text is ranked once, but for the rows that are ranked alone."""
    texts = [tuple(probe.fields[name] for name in predictor.fields) for probe in probes]
    found: list[list[float]] = [[]] * len(probes)
    for alone in (False, True):
        chosen = [index for index, probe in enumerate(probes) if (probe.probe == ALONE) is alone]
        distinct = list(dict.fromkeys(texts[index] for index in chosen))
        rows = [dict(zip(predictor.fields, text, strict=True)) for text in distinct]
        examples = [Example(ids, -1) for ids in predictor.template.encode(rows)]
        if not examples:
            continue
        scores = predictor.ranker.rank(examples, batch_size=1 if alone else batch_size, advance=progress.advance).exp().tolist()
        progress.advance(len(chosen) - len(distinct))
        by_text = dict(zip(distinct, scores, strict=True))
        for index in chosen:
            found[index] = by_text[texts[index]]
    return found


def _answers(params: TaskParams, probes: Sequence[Probe], probabilities: Sequence[Sequence[float]]) -> pd.DataFrame:
    labels = params.prompt.labels
    lines = [
        (
            probe.probe,
            probe.row_id,
            probe.side,
            "\n".join(probe.fields.values()),
            probe.label,
            labels[max(range(len(labels)), key=lambda index: row[index])],
            *row,
        )
        for probe, row in zip(probes, probabilities, strict=True)
    ]
    return pd.DataFrame(lines, columns=pd.Index([*ANSWER_COLUMNS, *(f"p.{label}" for label in labels)]))


def _likelihoods(predictor: Predictor, bundle: Path, bias: Texts, batch_size: int, progress: Progress) -> Iterator[tuple[Any, ...]]:
    """One line of `bias_scores` for each text of a file and each of the two prompts; a text too long for the context has no line."""
    for name, texts in bias.items():
        for prompt, folder in (("base", None), ("tuned", bundle)):
            found: list[Likelihood | None] = text_likelihoods(
                base=predictor.base,
                template=predictor.template,
                bundle=folder,
                texts=[(pair.context, text) for pair, _, text in texts],
                batch_size=batch_size,
                advance=progress.advance,
            )
            for (pair, side, text), one in zip(texts, found, strict=True):
                if one is not None:
                    yield name, pair.number, pair.kind, side, prompt, text, one.log_probability, one.tokens
