"""Notices: what the user is told besides results."""

from muwa.runtime.notices import notice, recorded_notices


def test_a_line_is_said_once_a_run_and_recorded(caplog):
    with recorded_notices() as outer:
        notice("left out: one style")
        with recorded_notices() as inner:
            notice("left out: one style")
            notice("damaged")
            assert inner is outer
        assert outer == ["left out: one style", "damaged"]
    assert caplog.messages == ["left out: one style", "damaged"]
    with recorded_notices() as second:
        notice("damaged")
    assert second == ["damaged"]
    assert outer == ["left out: one style", "damaged"]
    assert len(caplog.messages) == 3


def test_outside_of_a_run_each_line_is_said(caplog):
    notice("of 50 % of 2")
    notice("of 50 % of 2")
    assert caplog.messages == ["of 50 % of 2"] * 2


def test_worker_ranks_say_nothing(caplog, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with recorded_notices() as told:
        notice("left out: one style")
    assert (caplog.messages, told) == ([], [])
