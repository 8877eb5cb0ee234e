"""Every hostile file ends in an error that names it and its place, or is read with its oddities counted; nothing in between."""

import pytest

from pipeline.errors import SourceError
from tests.data.hostile_files import CASES, Accepted, Case, Refused
from tests.data.source_reading import read


def test_there_are_enough_of_them_and_no_two_share_a_name():
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names) >= 80
    assert sum(isinstance(case.expected, Accepted) for case in CASES) >= 15


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_a_hostile_file(tmp_path, case: Case, capsys):
    (tmp_path / case.name).write_bytes(case.content)
    if isinstance(case.expected, Refused):
        with pytest.raises(SourceError) as caught:
            read({"path": case.name, **case.options}, root=tmp_path)
        message = str(caught.value)
        assert case.name in message
        for words in case.expected.words:
            assert words in message
        assert len(message) < 700
        assert message.isprintable()
    else:
        rows, facts = read({"path": case.name, **case.options}, root=tmp_path)
        assert (len(rows), facts.oddities) == (case.expected.rows, case.expected.oddities)
    assert capsys.readouterr() == ("", "")  # no pickle ran
