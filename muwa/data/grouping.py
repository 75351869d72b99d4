"""Group the files of a tar into samples: one rule for every way to read it.

Files that follow each other under one key are one sample, as webdataset groups them: the key is the path up
to the first dot of the file's name. Two kinds of tars are read too whose samples webdataset takes apart:

- **Dots in keys** (`a.1.jpg`, `a.1.txt`, `a.2.jpg`, ...). If an image and a caption under one key have the
  same name up to the last dot, they are a sample of that name.
- **Files ordered by kind** (all .jpg, then all .txt). A sample without image or without caption waits for
  the other file under its key, until the end of the tar, unless a key came twice before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from muwa.data.caption_key import IMAGES, CaptionKey
from muwa.data.tars import Member

T = TypeVar("T")


@dataclass
class Grouped(Generic[T]):
    """The files of one sample.

    Args:
        key: Of the sample.
        images: Its images; a sound sample has one.
        caption: (Ending, file) of its caption, or None.
        repeated: An ending that two of its images or captions have, or None.
        others: The endings of its other files.
    """

    key: str
    images: list[Member[T]] = field(default_factory=list)
    caption: tuple[str, Member[T]] | None = None
    repeated: str | None = None
    others: tuple[str, ...] = ()


@dataclass
class _Run(Generic[T]):
    """Files that follow each other under one key.

    Attributes:
        files: What stands between key and ending in their names ("" for most) -> ending -> file.
        repeated: (The same, ending) of files that came twice.
    """

    key: str
    files: dict[str, dict[str, Member[T]]] = field(default_factory=dict)
    repeated: set[tuple[str, str]] = field(default_factory=set)
    is_joined: bool = False

    def add(self, ending: str, member: Member[T]) -> None:
        stem, _, last = ending.lower().rpartition(".")
        if self.files.setdefault(stem, {}).setdefault(last, member) is not member:
            self.repeated.add((stem, last))

    def shares_a_name(self, other: _Run[T]) -> bool:
        return any(some.keys() & other.files.get(stem, {}).keys() for stem, some in self.files.items())

    def joined(self, other: _Run[T]) -> _Run[T]:
        stems = [*self.files, *other.files]
        files = {stem: {**self.files.get(stem, {}), **other.files.get(stem, {})} for stem in stems}
        return _Run(self.key, files, self.repeated | other.repeated, True)

    def held(self) -> int:
        return sum(member.held for some in self.files.values() for member in some.values())


def split_name(name: str) -> tuple[str, str] | None:
    """(Key, ending) of a file; None for one that belongs to no sample.

    >>> split_name("a/b.left.JPG"), split_name("._a.jpg")  # macOS writes ._a.jpg beside a.jpg
    (('a/b', 'left.JPG'), None)
    """
    folder, _, last = name.rpartition("/")
    stem, dot, ending = last.partition(".")
    is_meta = any(part.startswith("__") and part.endswith("__") for part in (name.partition("/")[0], last))
    if not stem or not dot or is_meta:
        return None
    return (f"{folder}/{stem}" if folder else stem), ending


def grouped(members: Iterable[Member[T]], captions: CaptionKey, bound: int) -> Iterator[Grouped[T]]:
    """The samples of a tar. A sample comes when it is complete; those that never are come last.

    Args:
        members: The files of the tar, in order.
        captions: Which files are captions.
        bound: How many bytes of files may wait in memory.

    Raises:
        OSError: More than `bound` bytes wait. Also what `members` raises, after the complete samples.
    """
    groups = _Groups[T](captions, bound)
    try:
        for member in members:
            parts = split_name(member.name)
            if parts is not None:
                yield from groups.add(*parts, member)
    except Exception:
        yield from groups.end(was_cut=True)
        raise
    yield from groups.end(was_cut=False)


class _Groups(Generic[T]):
    """The state of `grouped`."""

    def __init__(self, captions: CaptionKey, bound: int):
        self._captions, self._bound = captions, bound
        self._read = (*IMAGES, *captions.strong)  # endings without which there is no sample
        self._current: _Run[T] | None = None
        self._waiting: dict[str, _Run[T]] = {}
        self._held = 0  # bytes of all runs that are in memory
        self._done: set[str] = set()
        self._has_repeats = False  # a key came twice: files far apart need not belong together

    def add(self, key: str, ending: str, member: Member[T]) -> Iterator[Grouped[T]]:
        """Take the next file; gives the samples that are complete now."""
        if self._current is None or key != self._current.key:
            yield from self._end_run()
            self._current = _Run(key)
        self._current.add(ending, member)
        self._held += member.held
        if self._held > self._bound:
            raise OSError(
                f"more than {self._bound:,} bytes of files wait for their sample: the files are ordered by "
                "kind, or all keys begin alike. Give the tar as a local file without compression, or sort "
                "it: `mkdir f && tar -xf OLD.tar -C f && tar --sort=name -cf NEW.tar -C f .`"
            )

    def end(self, *, was_cut: bool) -> Iterator[Grouped[T]]:
        """The samples that are left at the end. Of a tar that was cut, an incomplete last one is left out."""
        if was_cut and self._current is not None and not self._is_complete(self._current):
            self._current = None
        yield from self._end_run()
        for run in list(self._waiting.values()):
            yield from self._samples(run)
        self._waiting.clear()

    def _end_run(self) -> Iterator[Grouped[T]]:
        run, self._current = self._current, None
        if run is None:
            return
        earlier = self._waiting.pop(run.key, None)
        if earlier is not None:
            if self._has_repeats or earlier.shares_a_name(run):
                self._has_repeats = True
                yield from self._release(earlier)
            else:
                run = earlier.joined(run)
        if self._is_complete(run):
            self._has_repeats |= run.key in self._done
            yield from self._release(run)
        elif run.key in self._done and not any(map(self._has_sample_file, run.files.values())):
            self._held -= run.held()  # the .json of a sample that is complete without it
        else:
            self._waiting[run.key] = run

    def _release(self, run: _Run[T]) -> Iterator[Grouped[T]]:
        self._held -= run.held()
        self._done.add(run.key)
        yield from self._samples(run)

    def _is_complete(self, run: _Run[T]) -> bool:
        """Whether a sample has its image and its caption. One that was joined waits for more than a .json."""
        weak = not run.is_joined and self._captions.field is not None
        return any(ending in self._read for _, ending in run.repeated) or any(
            self._has_pair(files, weak=weak and not stem) for stem, files in run.files.items()
        )

    def _has_sample_file(self, files: Mapping[str, Member[T]]) -> bool:
        return any(ending in files for ending in self._read)

    def _has_pair(self, files: Mapping[str, Member[T]], *, weak: bool) -> bool:
        has_caption = any(one in files for one in self._captions.strong) or (weak and "json" in files)
        return has_caption and any(one in files for one in IMAGES)

    def _samples(self, run: _Run[T]) -> Iterator[Grouped[T]]:
        """The samples of a run: one, or several if there are pairs whose names have dots."""
        plain = run.files.get("", {})
        weak = self._captions.field is not None and not any(one in plain for one in IMAGES)
        if any(stem and self._has_pair(files, weak=weak) for stem, files in run.files.items()):
            for stem, files in run.files.items():
                if self._has_sample_file(files):
                    yield self._sample(run, stem, files, [])
        else:
            more = [f"{stem}.{one}" for stem, files in run.files.items() if stem for one in files]
            yield self._sample(run, "", plain, more)

    def _sample(
        self, run: _Run[T], stem: str, files: Mapping[str, Member[T]], more: Sequence[str]
    ) -> Grouped[T]:
        texts = (*self._captions.endings, *(("json",) if self._captions.field else ()))
        repeated = {ending for some, ending in run.repeated if some == stem and ending in self._read}
        return Grouped(
            key=f"{run.key}.{stem}" if stem else run.key,
            images=[member for ending, member in files.items() if ending in IMAGES],
            caption=next(((one, files[one]) for one in texts if one in files), None),
            repeated=min(repeated, default=None),
            others=tuple(sorted([*more, *(one for one in files if one not in (*IMAGES, *texts))])),
        )
