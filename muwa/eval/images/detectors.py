"""Detectors of a user: a command that scores pictures, and a CLIP with texts for each concept.

`command` and `text_labels` are `ClassifierLoader`s: muwa/conf/classifier/command.yaml and text_labels.yaml
configure them.
"""

from __future__ import annotations

import csv
import hashlib
import math
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from muwa.eval.images.classifiers import task_labels
from muwa.eval.images.clips import embed, highest
from muwa.fingerprint import digest
from muwa.models.clip.embeddings import Tower, class_features
from muwa.models.diffusion.image_classifier import ImageClassifier
from muwa.run import Run
from muwa.types.data import Classes, Task
from muwa.types.ranges import Number, Seconds, Template, Text, Texts, TextsByName

if TYPE_CHECKING:
    from muwa.models.clip.model import Clip
    from muwa.models.diffusion.model import Diffusion

AT_ONCE = 1000  # pictures that a command gets at once
SHOWN = 1500  # characters of a failed command's stderr that are shown
FOLDER, OUTPUT = "{folder}", "{output}"


class CommandDetector(ImageClassifier):
    """A program that scores pictures. It detects each concept whose score is above a threshold.

    The program gets a folder of png files and gives a csv with a header:

        name,score                     one concept
        name,nudity,violence           several: a column each

    It prints the csv, or writes it to the file that takes the place of {output}. Lines before the header are
    ignored. Each picture must have exactly one row, and each score must be a finite number.

    A picture that was scored once is not scored again. The program is run without a shell.

    Args:
        words: The command. {folder} in a word is the folder of pictures, {output} the file to write.
        concepts: What it detects.
        threshold: A score above it is a detection.
        timeout: Seconds after which the program is ended.
    """

    detects = frozenset({"class"})

    def __init__(self, words: Sequence[str], concepts: Sequence[str], threshold: float, timeout: float):
        self._words, self._threshold, self._timeout = tuple(words), threshold, timeout
        self.labels = {"class": tuple(concepts)}
        self._scored: dict[str, list[float]] = {}

    def logits(self, images: Tensor, domain: str) -> Tensor:
        """(n, 3, h, w) uint8 -> (n, concepts): scores less the threshold.

        Raises:
            ValueError: The program failed, took too long, or its csv is not as it should be. The message has
                the end of its stderr.
        """
        keys = [hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest() for image in images]
        new = {key: i for i, key in enumerate(keys) if key not in self._scored}
        for start in range(0, len(new), AT_ONCE):
            some = list(new.items())[start : start + AT_ONCE]
            rows = self._run([images[i] for _, i in some])
            self._scored |= {key: row for (key, _), row in zip(some, rows, strict=True)}
        return torch.tensor([self._scored[key] for key in keys]) - self._threshold

    def _run(self, images: Sequence[Tensor]) -> list[list[float]]:
        """The scores of some pictures, in the order of the concepts."""
        with tempfile.TemporaryDirectory() as scratch:
            folder, output = Path(scratch) / "pictures", Path(scratch) / "scores.csv"
            folder.mkdir()
            names = [f"{i:05d}.png" for i in range(len(images))]
            for name, image in zip(names, images, strict=True):
                Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / name)
            words = [word.replace(FOLDER, str(folder)).replace(OUTPUT, str(output)) for word in self._words]
            printed, said = _run_program(words, self._timeout)
            if any(OUTPUT in word for word in self._words):
                if not output.is_file():
                    raise ValueError(f"{_quoted(words)} wrote no {OUTPUT}.{_end_of(said)}")
                printed = output.read_text(encoding="utf-8", errors="replace")
            try:
                return scores_of(printed, names, self.labels["class"])
            except ValueError as error:
                raise ValueError(f"{_quoted(words)}: {error}.{_end_of(said)}") from error

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the command, with the content of files that it names, of the concepts and threshold."""
        words = [
            hashlib.sha256(Path(word).read_bytes()).hexdigest() if Path(word).is_file() else word
            for word in self._words
        ]
        return digest(["command", *words, "\0", *self.labels["class"], repr(self._threshold)])


def scores_of(text: str, names: Sequence[str], concepts: Sequence[str]) -> list[list[float]]:
    """The scores in a detector's csv, in the order of `names`, each in the order of `concepts`.

    Raises:
        ValueError: Says which header, picture or score is not as it should be.
    """
    wanted = ["name", *concepts]
    rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines()) if row]
    start = next((i for i, row in enumerate(rows) if row[0].lower() == "name"), None)
    if start is None:
        first = text.strip().splitlines()[0][:80] if text.strip() else "nothing"
        raise ValueError(f"got {first!r}, want a csv with the header {','.join(wanted)}")
    header = rows[start][1:]
    if header == ["score"] and len(concepts) == 1:
        header = list(concepts)
    if sorted(header) != sorted(concepts):
        or_score = " or name,score" if len(concepts) == 1 else ""
        raise ValueError(f"got the header {','.join(rows[start])}, want {','.join(wanted)}{or_score}")
    scores: dict[str, list[float]] = {}
    for row in rows[start + 1 :]:
        name = Path(row[0]).name
        if name not in names or name in scores:
            raise ValueError(f"{row[0]} has a second row" if name in scores else f"no picture is {row[0]!r}")
        if len(row) != len(header) + 1:
            raise ValueError(f"the row of {name} has {len(row)} columns, want {len(header) + 1}")
        values = dict(zip(header, (_score(name, cell) for cell in row[1:]), strict=True))
        scores[name] = [values[concept] for concept in concepts]
    if missing := [name for name in names if name not in scores]:
        raise ValueError(f"no score for {len(missing)} of {len(names)} pictures, such as {missing[0]}")
    return [scores[name] for name in names]


def _score(name: str, cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"the score of {name} is {cell!r}, want a finite number")
    return value


def _run_program(words: Sequence[str], timeout: float) -> tuple[str, str]:
    """(What a program printed, its stderr). When it takes too long, it is ended with what it started."""
    process = subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        printed, said = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        _, said = process.communicate()
        raise ValueError(
            f"{_quoted(words)} took more than {timeout:g} s (classifier.timeout).{_end_of(said)}"
        ) from None
    except BaseException:  # the run ends: so must what it started
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    if process.returncode:
        raise ValueError(f"{_quoted(words)} ended with {process.returncode}.{_end_of(said)}")
    return printed, said


def _quoted(words: Sequence[str]) -> str:
    return f"classifier.command: {shlex.join(words)}"


def _end_of(said: str) -> str:
    """The end of a program's stderr, for a message; nothing if it said nothing."""
    said = said.strip()
    return f" Its stderr ends:\n{said[-SHOWN:]}" if said else " It said nothing on stderr."


def command(
    model: Diffusion,
    task: Task,
    *,
    command: Text | Texts | None,
    concepts: Texts | None,
    threshold: Number,
    timeout: Seconds,
) -> ImageClassifier:
    """A detector that is a program of the user. It is run when the first picture is scored, not before.

    Args:
        model: Not used.
        task: Its names are the concepts, if none are given.
        command: The program and its arguments, with {folder} in one of them, and {output} if it writes its
            csv to a file. A text is split as a shell would; no shell is run.
        concepts: What it detects, as the columns of its csv are called; None: the names to forget.
        threshold, timeout: As in `CommandDetector`.

    Raises:
        ValueError: No command is given, it has no {folder}, its program is not found, or a setting is out of
            range.
    """
    words = shlex.split(command) if isinstance(command, str) else list(command or ())
    if not words:
        raise ValueError(
            "classifier.command: got none, want a program that scores pictures: "
            "'classifier.command=\"python FILE {folder}\"'"
        )
    if not any(FOLDER in word for word in words):
        raise ValueError(f"classifier.command: got {shlex.join(words)}, want {FOLDER} in it")
    if shutil.which(words[0]) is None:
        raise ValueError(f"classifier.command: no program {words[0]!r} is found")
    if not math.isfinite(threshold) or not 0 < timeout < math.inf:
        raise ValueError(
            f"classifier: got threshold={threshold} and timeout={timeout}, want a finite number, and seconds"
        )
    return CommandDetector(words, concepts or task.names, threshold, timeout)


class TextLabels(ImageClassifier):
    """An unedited CLIP with texts for each concept. It chooses the concept that has the nearest text.

    Args:
        clip: Its weights decide the fingerprint.
        texts: Concept -> texts that describe images of it, whole sentences. At least two concepts.

    Raises:
        ValueError: There is nothing to choose from, or a concept has no text.
    """

    def __init__(self, clip: Clip, texts: Mapping[str, Sequence[str]]):
        if len(texts) < 2 or not all(texts.values()):
            raise ValueError(
                f"classifier.texts: got texts for {', '.join(texts) or 'nothing'}, want texts for each of "
                "two concepts or more, such as {nudity: [a naked person], clothed: [a person in clothes]}"
            )
        self._clip = clip
        self._texts = {concept: tuple(some) for concept, some in texts.items()}
        self.labels = {"class": tuple(texts)}

    @cached_property
    def _features(self) -> Tensor:
        flat = tuple(text for some in self._texts.values() for text in some)
        return class_features(Tower(self._clip, "text"), Classes(flat, ("{}",)), run=Run())

    def logits(self, images: Tensor, domain: str) -> Tensor:
        """(n, 3, h, w) uint8 -> (n, concepts): the highest cosine with one of its texts."""
        return highest(embed(self._clip, images) @ self._features.T, list(map(len, self._texts.values())))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the CLIP and of all texts."""
        parts = [part for concept, some in self._texts.items() for part in (concept, "\0", *some)]
        return digest(["text labels", self._clip.fingerprint, *parts])


def text_labels(
    model: Diffusion, task: Task, *, clip: Callable[[], Clip], texts: TextsByName | None, template: Template
) -> ImageClassifier:
    """A given CLIP with given texts for each concept.

    Args:
        model: Not used.
        task: Its names (`muwa.eval.images.classifiers.task_labels`) are the concepts, if no texts are given.
        clip: Loads the CLIP.
        texts: As in `TextLabels`; None: `template` for each name of the task.
        template: A text with {} for the name.

    Raises:
        ValueError: See `TextLabels`; or the template has no {}.
    """
    if texts is None:
        if "{}" not in template:
            raise ValueError(f"classifier.template: got {template!r}, want {{}} in it for the name")
        names = [name for some in task_labels(task).values() for name in some]
        texts = {name: (template.format(name),) for name in names}
    return TextLabels(clip(), texts)
