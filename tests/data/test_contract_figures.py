"""validate: figures of all rows together, personal data, groups, and tasks with free-text targets."""

import json

import pandas as pd
import pytest

from pipeline.errors import BaseModelError, ContractError, ParamsError, StageInputError
from pipeline.records import write_parquet
from tests.data.byte_model import write_byte_model

LABELS = ("negative", "neutral", "positive")
PERSONAL = {4: "write to a@b.co please", 7: "call 800-433-7300 or c@d.co", 9: "pay by 4242 4242 4242 4242"}
MASKED = {4: "write to [e-mail address] please", 7: "call [phone number] or [e-mail address]", 9: "pay by [card number]"}


def rows_of(texts, labels=None, **more):
    count = len(texts)
    frame = pd.DataFrame(
        {
            "row_id": [f"id{i}" for i in range(count)],
            "source_row": range(1, count + 1),
            "text": texts,
            "label": labels or [LABELS[i % 3] for i in range(count)],
            "label_confidence": [None] * count,
            **more,
        }
    )
    return frame.astype({"text": "str", "label": "str", "label_confidence": "float64"})


def sound(count=30, **changed):
    return rows_of([changed.get(str(i), f"a text with number {i}") for i in range(count)])


def personal_rows():
    return sound(**{str(i): text for i, text in PERSONAL.items()})


def validate(workspace, rows, prompt=None, **limits):
    write_parquet(workspace.path("raw"), rows)
    return workspace.run("validate", workspace.params(validate_=limits, **({"prompt": prompt} if prompt else {})))


def unmet(report):
    return {(e["suite"], e["column"], e["severity"]) for e in report["expectations"] if not e["success"]}


def accepted(workspace):
    return pd.read_parquet(workspace.path("accepted"))


# --- personal data ----------------------------------------------------------------------------------------------------


def personal(action):
    return {"personal_data": {"action": action, "phone_region": "US"}}


def test_personal_data_is_counted(workspace):
    report = validate(workspace, personal_rows(), **personal("count"))
    assert report["personal_data"]["found"] == {
        "e-mail addresses": {"rows": 2, "count": 2},
        "phone numbers": {"rows": 1, "count": 1},
        "card numbers": {"rows": 1, "count": 1},
    }
    assert (report["personal_data"]["rows"], report["personal_data"]["masked_rows"]) == (3, 0)
    assert unmet(report) == {("raw", kind, "info") for kind in report["personal_data"]["found"]}
    assert accepted(workspace)["text"].tolist() == personal_rows()["text"].tolist()


def test_personal_data_is_masked_in_all_that_is_written(workspace):
    rows = personal_rows()
    rows.loc[7, "label"] = None
    report = validate(workspace, rows, **personal("mask"))
    assert (report["personal_data"]["rows"], report["personal_data"]["masked_rows"]) == (3, 2)
    found = accepted(workspace)
    expected = rows.assign(text=[MASKED.get(i, text) for i, text in enumerate(rows["text"])]).drop(index=7)
    assert found["row_id"].tolist() == expected["row_id"].tolist()
    assert found["text"].tolist() == expected["text"].tolist()
    assert pd.read_parquet(workspace.path("quarantined"))["text"].tolist() == [MASKED[7]]


def test_texts_that_masking_makes_equal_are_duplicates(workspace):
    rows = rows_of(["ask a@b.co now", "ask x@y.org now", "other one"], ["positive", "positive", "neutral"])
    report = validate(workspace, pd.concat([rows, sound().assign(row_id=lambda f: "s" + f["row_id"])]), **personal("mask"))
    assert report["quarantined_by_rule"]["duplicate"] == 1


def test_rows_with_personal_data_can_be_set_aside(workspace):
    report = validate(workspace, personal_rows(), **personal("quarantine"))
    aside = pd.read_parquet(workspace.path("quarantined"))
    assert aside["row_id"].tolist() == ["id4", "id7", "id9"]
    assert aside["reason"][1] == "The text holds 1 e-mail addresses, 1 phone numbers."
    assert report["quarantined_by_rule"]["personal_data"] == 3


def test_a_mask_that_fails_blocks(workspace, monkeypatch):
    """Fault injection: what masks returns the text as it was."""
    monkeypatch.setattr("pipeline.data.personal_data._mask", lambda text, found: text)
    with pytest.raises(ContractError, match="no personal data is left"):
        validate(workspace, personal_rows(), **personal("mask"))
    assert not workspace.path("accepted").exists()


# --- figures ----------------------------------------------------------------------------------------------------------


def test_a_rare_label_blocks_and_an_imbalance_warns(workspace):
    rows = sound().assign(label=["negative"] * 20 + ["neutral"] * 6 + ["positive"] * 4)
    report = validate(workspace, rows, minimum_label_rows=4, maximum_label_imbalance=5.0)
    assert report["figures"]["label imbalance"] == 5.0
    assert unmet(report) == set()
    assert unmet(validate(workspace, rows, minimum_label_rows=4, maximum_label_imbalance=4.9)) == {
        ("figures", "label imbalance", "warning")
    }
    with pytest.raises(ContractError, match=r"every label has at least 5 rows; found: 4\."):
        validate(workspace, rows, minimum_label_rows=5)


def test_a_surface_property_that_tells_the_label_is_reported(workspace):
    texts = [f"{'see http://t.co/x' if i % 3 == 0 else 'a text'} number {i:02}" for i in range(30)]
    report = validate(workspace, rows_of(texts), maximum_association=0.5)
    assert report["figures"]["association of URL and label"] == pytest.approx(1.0)
    assert ("figures", "association of URL and label", "warning") in unmet(report)
    assert report["figures"]["association of hashtag and label"] == 0.0
    assert ("figures", "association of hashtag and label", "warning") not in unmet(report)


def test_small_groups_are_reported(workspace):
    rows = sound().assign(**{"group.airline": ["big"] * 27 + ["small"] * 3, "origin": [f"doc{i % 5}" for i in range(30)]})
    report = validate(workspace, rows, minimum_group_rows=4)
    assert report["groups"] == {"airline": {"big": 27, "small": 3}}
    assert unmet(report) == {("figures", "rows in the smallest airline", "warning")}
    assert list(accepted(workspace).columns) == list(rows.columns)


def test_foreign_texts_are_told_or_set_aside(workspace):
    rows = sound(**{"3": "\u043f\u0440\u0438\u0432\u0435\u0442 \u0432\u0441\u0435\u043c"})
    script = {"expected": ["Latin"], "minimum_share": 0.5}
    report = validate(workspace, rows, script={**script, "foreign_texts": "keep"})
    assert unmet(report) == {("raw", "script share", "info")}
    assert report["script"] == {"expected": ["Latin"], "mean_share": pytest.approx(29 / 30), "rows_below": 1, "rows_without_letters": 0}
    assert validate(workspace, rows, script={**script, "foreign_texts": "quarantine"})["quarantined_by_rule"]["foreign_script"] == 1
    assert validate(workspace, rows, script=None)["script"] is None
    with pytest.raises(ParamsError, match="Klingon"):
        validate(workspace, rows, script={**script, "expected": ["Klingon"]})


def test_the_report_says_how_many_tokens_there_is_room_for(workspace):
    rows = sound(**{"5": "x" * 200})
    report = validate(workspace, rows)
    tokens = report["tokens"]  # of the byte model, for the template "Tweet: {text}\nSentiment:" and the verbalizer " negative"
    assert (tokens["context_length"], tokens["virtual_tokens"], tokens["template_tokens"], tokens["answer_tokens"]) == (2048, 20, 17, 9)
    assert tokens["room"] == 2048 - 20 - 17 - 9
    assert tokens["fields"]["text"]["max"] == 201
    assert tokens["fields"]["text"]["cut"] == 1
    assert report["characters"]["text"]["max"] == 200
    assert unmet(report) == {("raw", "text tokens", "info")}


def test_a_prompt_without_room_sets_all_rows_aside_and_blocks(workspace):
    write_byte_model(workspace.root / "model", context=60)
    with pytest.raises(ContractError, match="at least 1 accepted rows"):
        validate(workspace, sound())
    report = json.loads(workspace.path("data_report").read_text())
    assert report["quarantined_by_rule"]["prompt_length"] == 30


def test_a_base_model_without_tokenizer_is_named(workspace):
    (workspace.root / "model" / "tokenizer.json").write_text("{")
    with pytest.raises(BaseModelError, match="tokenizer of bytes is damaged"):
        validate(workspace, sound())


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda rows: rows.assign(text=1), "column text is int64, expected text"),
        (lambda rows: rows.assign(source_row="x"), "column source_row is .*string, expected a whole number"),
        (lambda rows: rows.drop(columns="label"), "column label is missing"),
    ],
)
def test_columns_of_another_type_are_an_input_error(workspace, change, part):
    with pytest.raises(StageInputError, match=part):
        validate(workspace, change(sound()))


# --- free-text targets ------------------------------------------------------------------------------------------------

FREE = {"verbalizers": {}, "template": "{text} ->", "hard_prompts": ["Answer: {text}"]}


def target_rows(count=30):
    rows = sound(count).rename(columns={"label": "target"})
    return rows.assign(target=[f"an answer {i}" for i in range(count)])


def validate_targets(workspace, rows, **limits):
    """The params of such a task are refused further on for now, so only the sections that validate reads are asked for."""
    write_parquet(workspace.path("raw"), rows)
    params = workspace.params(validate_=limits)
    params = params.model_copy(update={"prompt": params.prompt.model_copy(update=FREE)})
    return workspace.run("validate", params)


def test_targets_need_no_labels(workspace):
    report = validate_targets(workspace, target_rows())
    assert (report["accepted"], report["labels"], report["figures"]) == (30, {}, {})
    assert not {"unknown_label", "conflicting_labels"} & set(report["quarantined_by_rule"])
    assert {e["column"] for e in report["expectations"] if e["suite"] == "accepted"} >= {"target characters", "prompt tokens"}
    assert unmet(report) == set()
    assert list(accepted(workspace).columns) == ["row_id", "source_row", "text", "target", "label_confidence"]


def test_targets_are_looked_at_row_by_row(workspace):
    rows = target_rows()
    rows.loc[1, "target"] = None
    rows.loc[2, "target"] = "x" * 51
    rows.loc[4, ["text", "target"]] = rows.loc[3, ["text", "target"]].to_numpy()
    rows.loc[6, "text"] = rows.loc[5, "text"]  # another target for the same text is no conflict
    report = validate_targets(workspace, rows, maximum_target_characters=50)
    aside = pd.read_parquet(workspace.path("quarantined"))
    assert dict(zip(aside["row_id"], aside["rule"], strict=True)) == {"id1": "missing_target", "id2": "target_length", "id4": "duplicate"}
    assert aside["reason"].tolist()[1:] == [
        "The target has 51 characters, expected at most 50.",
        "The same normalised text stands in an earlier row with the same target.",
    ]
    assert report["accepted"] == 27
