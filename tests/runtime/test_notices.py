"""Lines for the user on stderr."""

from muwa.runtime.notices import notice


def test_a_line_is_printed_once_and_by_rank_0_alone(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    notice("left out: one style")
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("RANK", "0")
    notice("left out: one style")
    notice("left out: one style")
    assert capsys.readouterr() == ("", "muwa: left out: one style\n")
