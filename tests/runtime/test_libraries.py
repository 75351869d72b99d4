import atexit
import gc
import sys

import pytest

from muwa.runtime.libraries import loading


@pytest.fixture
def no_torch(monkeypatch):
    """A process that has not imported torch; what it froze is thawed. Gives what is to be done at its end."""
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    at_exit = []
    monkeypatch.setattr(atexit, "register", at_exit.append)
    yield at_exit
    gc.unfreeze()


def test_no_garbage_is_looked_for_and_what_was_made_is_left_out_until_the_end(no_torch):
    with loading():
        assert not gc.isenabled()
        made = [[] for _ in range(100)]
    assert gc.isenabled()
    assert gc.get_freeze_count() > len(made)
    (thaw,) = no_torch
    thaw()
    assert gc.get_freeze_count() == 0


@pytest.mark.usefixtures("no_torch")
def test_python_looks_for_garbage_again_after_an_import_that_failed():
    with pytest.raises(ImportError), loading():
        raise ImportError("no such library")
    assert gc.isenabled()


def test_a_later_run_in_the_same_process_changes_nothing(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", sys)  # any module
    frozen = gc.get_freeze_count()
    with loading():
        assert gc.isenabled()
    assert gc.get_freeze_count() == frozen


@pytest.mark.usefixtures("no_torch")
def test_who_looks_for_no_garbage_is_not_made_to():
    gc.disable()
    try:
        with loading():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
