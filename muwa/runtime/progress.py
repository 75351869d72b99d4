"""What a run shows while it works, on stderr.

A terminal shows the stage ("3 of 7"), and below it one bar: that of the innermost loop, with its rate and the
time left. Loops around it stand above the bar in words. In a pipe or the log of a job there is one line for
each stage with its seconds, and one line a minute within a long one. `launch.log` of the run holds these
lines in any case.
"""

from __future__ import annotations

import logging
import multiprocessing
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.spinner import Spinner
from rich.text import Text

from muwa.runtime import stopping

T = TypeVar("T")
log = logging.getLogger(__name__)
MINUTE = 60.0  # seconds between two lines within a stage, where there is no terminal
_NAME = 24  # columns of a stage's name in the lines


class _Rate(ProgressColumn):
    """Units per second, averaged over the last seconds."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.1f}/s" if speed else "", style="progress.data.speed")


class _Left(ProgressColumn):
    """The time that is left, as the lines of the loops around this one say it."""

    def render(self, task: Task) -> Text:
        left = _left(task)
        return Text("" if left is None else f"{_clock(left)} left", style="progress.remaining")


@dataclass
class _Screen:
    """The stage and the loops that are at work, innermost last, and how they are drawn."""

    bars: Progress
    loops: list[TaskID] = field(default_factory=list)
    stage: str = ""
    started: float = 0.0
    passes: dict[tuple[int, str], int] = field(default_factory=dict)  # (depth, label) -> how often it began
    spinner: Spinner = field(default_factory=lambda: Spinner("dots"))

    def begin(self, label: str, total: int) -> TaskID:
        """A loop begins. From the second time on in a stage, its label has a number."""
        key = (len(self.loops), label)
        self.passes[key] = self.passes.get(key, 0) + 1
        text = label if self.passes[key] == 1 else f"{label} ({self.passes[key]})"
        self.loops.append(self.bars.add_task(text, total=total))
        return self.loops[-1]

    def advance(self, loop: TaskID, units: int) -> None:
        """A loop goes on; loops within it start to count their passes anew."""
        now = next(task.elapsed for task in self.bars.tasks if task.id == loop)
        self.bars.update(loop, advance=units, last=now, units=units)
        depth = self.loops.index(loop)
        self.passes = {key: count for key, count in self.passes.items() if key[0] <= depth}

    def end(self, loop: TaskID) -> None:
        """A loop ends."""
        self.loops.remove(loop)
        self.bars.remove_task(loop)

    def tasks(self) -> list[Task]:
        """The loops as rich keeps them, innermost last."""
        by_id = {task.id: task for task in self.bars.tasks}
        return [by_id[loop] for loop in list(self.loops) if loop in by_id]

    def render(self) -> RenderableType:
        """What a terminal shows now."""
        tasks, lines = self.tasks(), list[RenderableType]()
        if self.stage:
            self.spinner.update(text=f"{self.stage}   {_clock(time.monotonic() - self.started)}")
            lines.append(self.spinner)
        lines += [Text(f"  {_position(task)}", style="dim") for task in tasks[:-1]]
        if tasks:
            lines.append(self.bars.make_tasks_table(tasks[-1:]))
        return Group(*lines)

    def line(self) -> str:
        """The same in one line, for a log."""
        where = "; ".join(map(_position, self.tasks()))
        took = _clock(time.monotonic() - self.started)
        return f"{self.stage.ljust(_NAME + 8)} {took} so far{where and f': {where}'}"


def _position(task: Task) -> str:
    """Where a loop is, and about how long it still takes."""
    left = _left(task)
    said = "" if left is None else f", {_clock(left)} left"
    return f"{task.description} {task.completed:,.0f} of {task.total or 0:,.0f}{said}"


def _left(task: Task) -> float | None:
    """About how many seconds a loop still takes, by the mean of the units that are done; None without any.

    The mean is taken when an item is done. While the next one goes on, the time left goes down by the second,
    at most by the time of an item as large as the last one, and then stands still.
    """
    if not task.completed or task.elapsed is None or not task.total:
        return None
    last, units = task.fields["last"], task.fields["units"]
    each, ahead = last / task.completed, task.total - task.completed
    return max(each * ahead - (task.elapsed - last), each * max(0, ahead - units))


def _clock(seconds: float) -> str:
    """Seconds as a clock shows them.

    >>> _clock(7.4), _clock(3725)
    ('0:07', '1:02:05')
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@dataclass
class _Plan:
    """The stages of the run at work."""

    names: Sequence[str]
    screen: _Screen
    show: bool
    live: Live | None  # what draws on a terminal; None where there is none

    def say(self, text: str) -> None:
        """A line for `launch.log`, and for whoever looks at stderr."""
        log.info(text)
        if self.show:
            print(f"muwa: {text}", file=sys.stderr, flush=True)


_plan: _Plan | None = None


def _new_screen(console: Console) -> _Screen:
    columns = (TextColumn("  {task.description:<26}"), BarColumn(), MofNCompleteColumn(), _Rate(), _Left())
    return _Screen(Progress(*columns, console=console, auto_refresh=False))


def _is_terminal(console: Console) -> bool:
    """Whether this process may draw: stderr is a terminal, and no other process of this run draws on it."""
    return console.is_terminal and multiprocessing.current_process().name == "MainProcess"


@contextmanager
def stages(names: Sequence[str], *, show: bool) -> Iterator[None]:
    """Show what happens in the `with` block, which is divided by `stage`.

    Args:
        names: The stages in their order.
        show: False shows nothing on stderr; the lines are logged in any case.
    """
    global _plan
    console = Console(stderr=True)
    screen, live = _new_screen(console), None
    if show and _is_terminal(console):
        live = Live(
            get_renderable=screen.render,
            console=console,
            transient=True,
            refresh_per_second=8,
            redirect_stdout=sys.stdout.isatty(),  # else it would go to this terminal, and not into the pipe
        )
    _plan, outer = _Plan(names, screen, show, live), _plan
    try:
        with live or _every_minute(_plan):
            yield
    finally:
        _plan = outer


@contextmanager
def _every_minute(plan: _Plan) -> Iterator[None]:
    """Say how far the stage is when it has taken a minute, and each minute from then on."""
    ended = threading.Event()

    def tell() -> None:
        told = 0.0
        while not ended.wait(MINUTE / 60):
            now = time.monotonic()
            if plan.screen.stage and now - max(told, plan.screen.started) >= MINUTE:
                plan.say(plan.screen.line())
                told = now

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        ended.set()
        teller.join()


@contextmanager
def stage(name: str) -> Iterator[None]:
    """One stage of those that `stages` lists; outside of `stages`, nothing is shown.

    It ends with a line that says how long it took, unless it ends with an error.
    """
    stopping.check()
    plan = _plan
    if plan is None or name not in plan.names:
        yield
        return
    screen = plan.screen
    screen.passes.clear()
    screen.started = time.monotonic()
    screen.stage = f"{plan.names.index(name) + 1} of {len(plan.names)}  {name}"
    yield
    took = time.monotonic() - screen.started
    plan.say(f"{screen.stage.ljust(_NAME + 8)} {took:6.1f} s")
    screen.stage = ""


def end_display() -> None:
    """Stop drawing on the terminal: what is printed from here on stays as it is."""
    if _plan is not None and _plan.live is not None:
        _plan.live.stop()


def track(
    items: Iterable[T], what: str, total: int, *, show: bool, sizes: Iterable[int] | None = None
) -> Iterator[T]:
    """Yield `items` with a progress bar.

    Args:
        what: The label of the bar.
        total: The number of units of all items together.
        show: False shows no bar. A stderr that is no terminal never shows one; there, a line a minute tells
            how far the loop is, within the `stages` of a run.
        sizes: The units of each item; None counts one for each.
    """
    if not show:
        yield from items
        return
    if _plan is None:
        if not _is_terminal(Console(stderr=True)):
            yield from items
            return
        with stages([], show=True):
            yield from track(items, what, total, show=True, sizes=sizes)
        return
    plan, screen = _plan, _plan.screen
    loop = screen.begin(what, total)
    counts = iter(sizes) if sizes is not None else None
    try:
        for item in items:
            stopping.check()
            yield item
            screen.advance(loop, next(counts) if counts is not None else 1)
    finally:
        if plan.live and not plan.names:
            plan.live.refresh()  # a bar alone is seen full at its end, however short it was
        screen.end(loop)
