"""The gate's check of the leakage record: passes at 0 everywhere, and on nothing else."""

import copy

import pytest

from pipeline.gates.data_checks import leakage_checks
from pipeline.gates.decision import decide

KINDS = ("exact", "normalised", "near", "origin")
SIDES = ("train", "validation", "test")
PAIRS = ("validation in train", "test in train", "test in validation")
OUTSIDE = ("external_test in train", "external_test in validation")
METRICS = {"n": 1700}


def record(external=False):
    rows = {"train": 13_600, "validation": 1700, "test": 1700} | ({"external_test": 500} if external else {})
    return {"rows": rows, "pairs": {pair: dict.fromkeys(KINDS, 0) for pair in (*PAIRS, *(OUTSIDE if external else ()))}}


def judged(leakage, metrics=METRICS):
    (check,) = leakage_checks(leakage, metrics)
    assert decide([check])[0] == ("promote" if check["verdict"] == "PASS" else "refuse")
    return check


@pytest.mark.parametrize("external", [False, True])
def test_no_leak_passes(external):
    check = judged(record(external))
    assert (check["name"], check["verdict"], check["value"], check["n"], check["limit"]) == ("leakage", "PASS", 0, 1700, 0.0)
    assert ("external test file" in check["sentence"]) == external


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pair", [*PAIRS, *OUTSIDE])
def test_one_row_fails(pair, kind):
    leakage = record(external=True)
    leakage["pairs"][pair][kind] = 1
    check = judged(leakage)
    assert (check["verdict"], check["value"]) == ("FAIL", 1)
    assert f"{pair}: {kind} 1" in check["sentence"]


def test_whatever_is_missing_refuses():
    for pair in (*PAIRS, *OUTSIDE):
        for kind in KINDS:
            leakage = record(external=True)
            del leakage["pairs"][pair][kind]
            assert judged(leakage)["verdict"] == "MISSING"
        leakage = record(external=True)
        del leakage["pairs"][pair]
        assert judged(leakage)["verdict"] == "MISSING"
    for leakage in ({}, {"rows": {}}, {"rows": {"test": 1700}}, {"pairs": record()["pairs"]}):
        assert judged(leakage)["verdict"] == "MISSING"


@pytest.mark.parametrize("broken", [None, -1, 0.0, "0", True, float("nan"), []])
def test_whatever_is_no_count_refuses(broken):
    for kind in KINDS:
        leakage = record()
        leakage["pairs"][PAIRS[1]][kind] = broken
        assert judged(leakage)["verdict"] == "ERROR"


def test_a_record_of_another_test_split_refuses():
    check = judged(record(), {"n": 1699})
    assert check["verdict"] == "ERROR"
    assert "1700" in check["sentence"]
    assert "1699" in check["sentence"]
    assert judged(record(), {})["verdict"] == "ERROR"


def test_the_record_is_not_changed():
    leakage = record(external=True)
    before = copy.deepcopy(leakage)
    judged(leakage)
    assert leakage == before
