import pytest

from muwa.progress import track


@pytest.mark.parametrize("show", [False, True])
def test_items_pass_through_unchanged_and_lazily(show):
    taken = []

    def items():
        for i in range(5):
            taken.append(i)
            yield i

    stream = track(items(), "counting", 10, show=show, sizes=[2] * 5)
    assert next(stream) == 0
    assert taken == [0]
    assert list(stream) == [1, 2, 3, 4]


def test_nothing_is_drawn_where_nobody_looks(capsys):
    list(track(range(3), "counting", 3, show=True))
    assert capsys.readouterr().err == ""


def test_a_terminal_sees_what_how_far_rate_and_time_left(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    list(track(range(3), "counting sheep", 3, show=True))
    shown = capsys.readouterr().err
    assert "counting sheep" in shown
    assert "3/3" in shown
