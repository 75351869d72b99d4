"""A signal ends a program with one line, in order; what somebody else handles stays theirs."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from muwa.runtime import stopping

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys, time
from pathlib import Path
from muwa.drafts import new_file
from muwa.runtime import stopping

out = Path(sys.argv[1])
with stopping.one_line("tool", "Nothing is lost."), new_file(out / "made") as draft:
    draft.write_text("half")
    try:
        (out / "ready").touch()
        time.sleep(60)
    finally:
        if len(sys.argv) > 2:
            (out / "cleaning").touch()
            time.sleep(60)
"""
IMPORTING = """
import sys, time
from pathlib import Path
from muwa.runtime import stopping
stopping.leave_at_once("tool")
Path(sys.argv[1], "ready").touch()
time.sleep(60)
"""


def heeding():
    """Signals may be ignored where the tests run: Ctrl-C in a job of a shell without a terminal, SIGHUP after nohup."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def started(out, program, *words, env=(), preexec_fn=heeding, **keywords):
    """A program that has said that it is ready."""
    out.mkdir(exist_ok=True)
    (out / "program.py").write_text(program)
    process = subprocess.Popen(
        [sys.executable, str(out / "program.py"), str(out), *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), **dict(env)}, stderr=subprocess.PIPE, text=True, preexec_fn=preexec_fn, **keywords,
    )  # fmt: skip
    wait_for(out / "ready")
    return process


def wait_for(path):
    end = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < end, f"no {path.name}"
        time.sleep(0.01)


@pytest.mark.parametrize(("number", "code", "word"), [
    (signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM"), (signal.SIGHUP, 129, "SIGHUP")])  # fmt: skip
def test_a_signal_ends_a_program_with_one_line_and_no_draft(tmp_path, number, code, word):
    process = started(tmp_path / "x", PROGRAM)
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (code, f"tool: stopped by {word}. Nothing is lost.\n")
    assert sorted(path.name for path in (tmp_path / "x").iterdir()) == ["program.py", "ready"]


def test_a_second_sigterm_waits_and_a_second_ctrl_c_ends_at_once(tmp_path):
    process = started(tmp_path / "x", PROGRAM, "slow")
    process.send_signal(signal.SIGTERM)
    wait_for(tmp_path / "x" / "cleaning")
    process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == -signal.SIGINT
    process.communicate()


def test_during_the_imports_of_a_command_nothing_was_done(tmp_path):
    process = started(tmp_path / "x", IMPORTING)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (143, "tool: stopped by SIGTERM. Nothing was done.\n")


def test_worker_ranks_say_nothing(tmp_path):
    process = started(tmp_path / "x", PROGRAM, env={"RANK": "1"})
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=30)[1] == ""
    assert process.returncode == 143


def test_what_nohup_ignores_stays_ignored(tmp_path):
    process = started(
        tmp_path / "x", PROGRAM, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)
    )
    process.send_signal(signal.SIGHUP)
    time.sleep(0.2)
    assert process.poll() is None
    process.kill()
    process.communicate()


@pytest.fixture
def handlers():
    """Puts the handlers of this process back."""
    before = {number: signal.getsignal(number) for number in stopping.WORDS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_the_handler_of_somebody_else_stays_and_is_told_after_us(handlers):
    """As in a job of submitit, which lets SIGTERM pass: the run notes it and goes on."""
    told = []
    signal.signal(signal.SIGTERM, lambda number, frame: told.append("theirs"))
    with stopping.listening(), stopping.also_told(lambda: told.append("ours")):
        os.kill(os.getpid(), signal.SIGTERM)
    assert told == ["ours", "theirs"]
    os.kill(os.getpid(), signal.SIGTERM)
    assert told == ["ours", "theirs", "theirs"]


def test_handlers_are_put_back(handlers):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with stopping.listening():
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    with pytest.raises(stopping.Stopped) as caught, stopping.listening():
        os.kill(os.getpid(), signal.SIGTERM)
    assert stopping.word(caught.value) == "SIGTERM"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_the_outermost_stage_is_named():
    stop = stopping.Stopped(signal.SIGINT)
    assert stopping.stage_of(stop) == ""
    stop.add_note("features")
    stop.add_note("search")
    assert stopping.stage_of(stop) == "search"


def test_processes_started_in_the_block_get_no_ctrl_c(tmp_path):
    with stopping.deaf_children():
        deaf = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    deaf.send_signal(signal.SIGINT)
    time.sleep(0.2)
    assert deaf.poll() is None
    deaf.terminate()
    assert deaf.wait(30) == -signal.SIGTERM
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


class Destroyed:
    """A signal comes while it is destroyed, where Python swallows what the handler raises."""

    def __del__(self):
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_error_after_a_signal_that_python_swallowed_is_the_stop():
    with pytest.raises(stopping.Stopped) as stopped, stopping.listening(), stopping.errors_of_a_stop():
        Destroyed()
        raise AttributeError("module 'half' has no attribute 'imported'")
    assert stopping.word(stopped.value) == "SIGTERM"


def test_an_error_without_a_signal_is_that_error():
    with pytest.raises(AttributeError), stopping.listening(), stopping.errors_of_a_stop():
        raise AttributeError("module 'whole' has no such attribute")
