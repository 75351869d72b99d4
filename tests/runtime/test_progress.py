import pytest

from muwa.runtime.progress import track


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


def test_an_item_counts_for_its_size(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    assert list(track("abc", "reading", 7, show=True, sizes=[1, 2, 4])) == ["a", "b", "c"]
    assert "7/7" in capsys.readouterr().err


def test_show_false_draws_nothing_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert list(track(range(3), "counting", 3, show=False)) == [0, 1, 2]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("show", [False, True])
def test_an_error_of_the_items_comes_through(show, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")

    def items():
        yield 1
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        list(track(items(), "reading", 2, show=show))
