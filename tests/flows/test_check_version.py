import pytest

from pipeline.errors import RegistryError
from pipeline.registry.check_version import check_answer, check_answers


def test_a_proper_answer_passes() -> None:
    check_answer("t", {"label": "b", "p.a": 0.25, "p.b": 0.75})
    check_answer("t", {"label": "a", "p.a": 0.5, "p.b": 0.5})


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        ({"label": "a", "p.a": float("nan"), "p.b": 0.5}, "expected finite ones that sum to 1"),
        ({"label": "a", "p.a": float("inf"), "p.b": 0.5}, "expected finite ones that sum to 1"),
        ({"label": "a", "p.a": 1.5, "p.b": -0.5}, "expected finite ones that sum to 1"),
        ({"label": "a", "p.a": 0.5, "p.b": 0.4}, "expected finite ones that sum to 1"),
        ({"label": "a"}, "expected finite ones that sum to 1"),
        ({"label": "a", "p.a": 0.4, "p.b": 0.6}, "the label is 'a'"),
        ({"label": "c", "p.a": 0.4, "p.b": 0.6}, "the label is 'c'"),
        ({"p.a": 0.4, "p.b": 0.6}, "the label is None"),
    ],
)
def test_an_answer_that_is_none_is_refused(answer: dict[str, object], complaint: str) -> None:
    with pytest.raises(RegistryError, match=f"row 1: .*{complaint}"):
        check_answer("row 1", answer)


def test_every_row_wants_an_answer() -> None:
    answer = {"label": "b", "p.a": 0.25, "p.b": 0.75}
    check_answers("t version 1", [{"text": "x"}], [answer])
    with pytest.raises(RegistryError, match=r"t version 1 gave 1 answers to 2 rows"):
        check_answers("t version 1", [{"text": "x"}, {"text": "y"}], [answer])
    with pytest.raises(RegistryError, match=r"t version 1, test row 2: the label is None"):
        check_answers("t version 1", [{"text": "x"}, {"text": "y"}], [answer, {"p.a": 0.4, "p.b": 0.6}])
