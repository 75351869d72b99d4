import logging
import re
import time

import pytest

from muwa.runtime import progress
from muwa.runtime.progress import stage, stages, track


@pytest.fixture
def terminal(monkeypatch):
    """A stderr that is a terminal of 120 columns."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")


def plain(text):
    """What is left of the output on a terminal without its escape codes."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


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


def test_a_terminal_sees_what_how_far_rate_and_time_left(terminal, capsys):
    list(track(range(3), "counting sheep", 3, show=True))
    shown = capsys.readouterr().err
    assert "counting sheep" in shown
    assert "3/3" in shown


def test_an_item_counts_for_its_size(terminal, capsys):
    assert list(track("abc", "reading", 7, show=True, sizes=[1, 2, 4])) == ["a", "b", "c"]
    assert "7/7" in capsys.readouterr().err


def test_show_false_draws_nothing_on_a_terminal(terminal, capsys):
    with stages(["counting"], show=False), stage("counting"):
        assert list(track(range(3), "counting", 3, show=False)) == [0, 1, 2]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("show", [False, True])
def test_an_error_of_the_items_comes_through(terminal, show):
    def items():
        yield 1
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        list(track(items(), "reading", 2, show=show))
    assert progress._plan is None


def test_a_pipe_gets_a_line_for_each_stage_with_its_seconds_and_the_log_too(capsys, caplog):
    caplog.set_level(logging.INFO, logger="muwa")
    with stages(["read", "measure", "write"], show=True):
        for name in ("read", "measure", "write"):
            with stage(name):
                list(track(range(3), "counting", 3, show=True))
    lines = capsys.readouterr().err.splitlines()
    assert [re.sub(r" +", " ", re.sub(r"\d+\.\d s", "T", line)) for line in lines] == [
        "muwa: 1 of 3 read T",
        "muwa: 2 of 3 measure T",
        "muwa: 3 of 3 write T",
    ]
    assert [f"muwa: {record.getMessage()}" for record in caplog.records] == lines


def test_without_progress_the_log_has_the_lines_alone(capsys, caplog):
    caplog.set_level(logging.INFO, logger="muwa")
    with stages(["read"], show=False), stage("read"):
        pass
    assert capsys.readouterr().err == ""
    assert [record.getMessage().split("  ")[0] for record in caplog.records] == ["1 of 1"]


def test_a_long_stage_says_how_far_it_is_once_a_minute(capsys, monkeypatch):
    monkeypatch.setattr(progress, "MINUTE", 0.05)
    with stages(["search"], show=True), stage("search"):
        for _ in track(range(4), "searching layers", 4, show=True):
            for _ in track(range(50), "generating images", 50, show=True):
                time.sleep(0.001)
    said = capsys.readouterr().err
    assert re.search(
        r"muwa: 1 of 1  search +0:00 so far: searching layers [0-3] of 4(, 0:00 left)?; "
        r"generating images( \(\d\))? \d+ of 50(, 0:00 left)?\n", said)  # fmt: skip


@pytest.mark.parametrize(("sizes", "wants"), [
    ([1, 1, 1, 1], {100: "", 101: "5:03", 150: "4:14", 201: "3:23", 202: "3:22", 900: "3:22"}),
    ([2, 2, 2], {100: "", 101: "3:22", 150: "2:33", 202: "1:41", 900: "1:41"}),
])  # fmt: skip
def test_the_time_left_goes_down_while_a_unit_goes_on(sizes, wants):
    """An item of 101 s: 3 (4 of 6) units are left, then one (two) fewer at its expected end; never more."""
    from rich.console import Console

    screen, now = progress._new_screen(Console()), 0.0
    screen.bars.get_time = lambda: now
    loop, said = screen.begin("searching", sum(sizes)), {}
    for now in wants:
        if now == 101:
            screen.advance(loop, sizes[0])
        said[now] = progress._position(screen.tasks()[0]).partition(", ")[2]
        assert progress._Left().render(screen.tasks()[0]).plain == said[now]
    assert said == {second: text and f"{text} left" for second, text in wants.items()}


def test_one_bar_at_a_time_below_the_loops_around_it(terminal, capsys):
    """The screen while three images of the second layer are done, and the sixth pass has not begun."""
    from rich.console import Console

    with stages(["search"], show=True), stage("search"):
        for layer in track(range(4), "searching layers", 4, show=True):
            for image in track(range(5), "generating images", 5, show=True):
                if (layer, image) == (1, 3):
                    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
                    console.print(progress._plan.screen.render())
                    seen = console.export_text().splitlines()
                    console.file.close()
    assert re.search(r"1 of 1  search   0:00", seen[0])
    assert re.match(r"  searching layers 1 of 4, 0:00 left", seen[1])
    assert re.match(r"  generating images +━.* 3/5 ", seen[2])
    assert len(seen) == 3


def test_a_pass_that_comes_again_has_a_number_until_the_loop_around_it_goes_on(monkeypatch):
    labels = []

    def passes():
        for _ in range(2):
            for _ in track([1], "encoding", 1, show=True):
                labels.append(progress._plan.screen.tasks()[-1].description)

    with stages(["a", "b"], show=True):
        with stage("a"):
            passes()
            for _ in track(range(2), "searching", 2, show=True):
                passes()
        with stage("b"):
            passes()
    two = ["encoding", "encoding (2)"]
    assert labels == [*two, *two, *two, *two]


def test_what_is_printed_stays_above_the_bar_and_a_stage_that_fails_says_nothing(terminal, capsys):
    with pytest.raises(ValueError, match="wrong"), stages(["a", "b"], show=True):
        with stage("a"):
            print("a line")
        with stage("b"):
            raise ValueError("wrong")
    captured = capsys.readouterr()
    assert "a line" in captured.out  # stdout is no terminal here: it gets its own line
    assert "muwa: 1 of 2  a" in plain(captured.err)
    assert not re.search(r"muwa: 2 of 2", plain(captured.err))
    assert progress._plan is None


def test_a_process_beside_the_main_one_draws_nothing(terminal, capsys, monkeypatch):
    monkeypatch.setattr("multiprocessing.current_process", lambda: type("P", (), {"name": "LokyProcess-1"}))
    list(track(range(3), "counting", 3, show=True))
    assert capsys.readouterr().err == ""


def test_outside_of_the_stages_of_a_run_a_stage_shows_nothing(capsys):
    with stage("reading"):
        pass
    assert capsys.readouterr().err == ""
