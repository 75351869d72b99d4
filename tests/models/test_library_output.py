import logging
import sys
import warnings

import pytest
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from muwa.models.library_output import quietly


def said(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "muwa"]


def test_warnings_become_one_line_each_and_progress_is_silent(caplog, capfd):
    with quietly():
        for _ in tqdm(range(3)):
            warnings.warn("the weights\nwere trained otherwise", UserWarning, stacklevel=1)
        logging.warning("Using 'a.bin' of two")
        logging.getLogger("diffusers.models").warning("\x1b[1mignored\x1b[0m setting")
        logging.getLogger("transformers.x").info("no warning")
        assert sys.stdin.read() == ""
    assert said(caplog) == ["the weights were trained otherwise", "Using 'a.bin' of two", "ignored setting"]
    assert capfd.readouterr() == ("", "")


def test_what_is_for_developers_is_left_out(caplog):
    with quietly():
        warnings.warn("old name", DeprecationWarning, stacklevel=1)
        warnings.warn("outdated scheduler", FutureWarning, stacklevel=1)  # for users, by Python's own rule
    assert said(caplog) == ["outdated scheduler"]


def test_a_warning_that_transformers_says_once_is_said_for_each_load(caplog):
    for _ in range(2):
        with quietly():
            transformers_logging.get_logger("transformers.test").warning_once("another image processor")
    assert said(caplog) == ["another image processor"] * 2


def test_no_question_can_be_asked_and_everything_is_as_before(caplog):
    stdin, handlers = sys.stdin, list(logging.getLogger("transformers").handlers)
    with pytest.raises(EOFError), quietly():
        logging.getLogger("transformers").warning("before the question")
        input("Do you wish to run the custom code? [y/N] ")
    assert sys.stdin is stdin
    assert logging.getLogger("transformers").handlers == handlers
    assert said(caplog) == []  # the error says what is wrong


def test_worker_ranks_say_nothing(caplog, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with quietly():
        logging.warning("once is enough")
    assert said(caplog) == []


def test_a_long_message_is_cut(caplog):
    with quietly():
        logging.warning("word " * 200)
    (line,) = said(caplog)
    assert len(line) == 303
