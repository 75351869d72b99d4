"""Tasks that forget people (muwa/conf/task/celeba.yaml) or objects (muwa/conf/task/object.yaml)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Self

import numpy as np

from muwa.data.base import TaskBuilder
from muwa.data.celeba import CelebA, read_celeba
from muwa.data.curate import Curated, Preview, curate, load_forget, mentions, preview
from muwa.data.dataset import Dataset
from muwa.data.earlier import known, set_apart
from muwa.data.imagenet import check_folder, class_names, read_folder
from muwa.data.labelled import decodable, labelled
from muwa.data.retain import read_retain
from muwa.data.samples import check_broken, find_names, fold, listed
from muwa.data.shards import expand
from muwa.data.splits import Limits, split_images, utility_images
from muwa.drafts import check_writable
from muwa.fingerprint import EncodedImage
from muwa.types.data import Broken, Classes, LabelledImages, Pairs, Split, Task
from muwa.types.ranges import Aliases, Names, ObjectTemplates, Seed, Template


@dataclass(frozen=True)
class ForgetIdentities(TaskBuilder):
    """Forget one person or several. Other people and objects should be recognised as before.

    Images of other people form the retain set, and images of objects (`dataset.images`) form the utility set.

    Args:
        identity: A name from `dataset.celeba`, or several; `_` may stand for a space.
        aliases: Name -> its other spellings in captions.
        template: Zero-shot prompt for a name, with {}. SLUG uses "{}.".
        utility_templates: Zero-shot prompts for an object: "simple" (open_clip's set of 7, as in SLUG),
            "openai" (open_clip's set of 80), or a prompt with {}.
        bare_captions: Replace the captions of the forget set with the bare name, as SLUG does for OpenAI's
            CLIPs.
        prompt: Prompt for generating an image of a person, with {} for the name.
        utility_prompt: Prompt for generating an image of an object, with {} for the name.
        seed: Seed for the split into images for the layer search and images for the report.
        limits: How many samples to take.

    Raises:
        ValueError: A name is unknown (the message lists the nearest names), occurs in no caption, or has too
            few images.
        FileNotFoundError: A folder or shard is missing. The message says what was looked for.
    """

    kinds: ClassVar[tuple[str, ...]] = ("identity",)
    names_setting: ClassVar[str] = "identity"

    identity: Names
    aliases: Aliases
    template: Template
    utility_templates: ObjectTemplates
    bare_captions: bool
    prompt: Template
    utility_prompt: Template
    seed: Seed
    limits: Limits

    def check(self, dataset: Dataset) -> None:
        """Raise if a name is unknown, a prompt has no {}, or a folder is missing or unwritable."""
        _check_prompts(template=self.template, prompt=self.prompt, utility_prompt=self.utility_prompt)
        people = _read_people(dataset)
        find_names(self.identity, people.names, _names_of(people, dataset))
        check_folder(Path(dataset.images))
        _check_shards(dataset)
        _curated_folder(dataset)

    def __call__(self, dataset: Dataset, *, progress: bool = False) -> Task:
        """Read the data and make the task."""
        return self.after((), dataset, progress=progress)

    def forgetting(self, names: Sequence[str]) -> Self:
        """The same settings for other people."""
        return replace(self, identity=list(names))

    def after(self, earlier: Sequence[str], dataset: Dataset, *, progress: bool = False) -> Task:
        """The task on a model that has forgotten other people or objects before."""
        people = _read_people(dataset)
        names = find_names(self.identity, people.names, _names_of(people, dataset))
        missing = _missing_faces(people, dataset)
        before = [n for n in known(earlier, people.names, names) if len(people.files.get(n, ())) > 1]
        others = [name for name in people.frequent if name not in (*names, *before)]
        classes = Classes(people.names, (self.template,))
        images = split_images(people.files, classes, [*names, *before], others, self.limits, self.seed)
        objects, broken = read_folder(
            Path(dataset.images),
            templates=templates(self.utility_templates),
            fraction=dataset.utility_used,
            seed=self.seed,
            max_broken=dataset.max_broken,
        )
        utility = utility_images(objects, dataset, self.seed)
        task = _task(self, dataset, "identity", names, images, utility, [*missing, *broken], progress)
        return set_apart(task, earlier, mentions(task.retain, earlier, self.aliases))

    def curate(self, dataset: Dataset, *, progress: bool = False) -> Curated:
        """Only write the forget sets; nothing but the shards is read."""
        return _curate(self, dataset, _folder_names(self.identity), progress)

    def preview(self, dataset: Dataset, *, progress: bool = False) -> dict[str, Preview]:
        """What `curate` would find, by name."""
        return _preview(self, dataset, _folder_names(self.identity), progress)


@dataclass(frozen=True)
class ForgetObjects(TaskBuilder):
    """Forget one object or several. Other objects and people should be recognised as before.

    Images of other objects form the retain set, and faces (`dataset.celeba`) form the utility set.

    Args:
        object: A class from `dataset.images`, or several; `_` may stand for a space.
        template: Zero-shot prompts for an object: "simple", "openai", or a prompt with {}.
        utility_template: Zero-shot prompt for a person's name, with {}.
        prompt: Prompt for generating an image of an object, with {} for the name.
        utility_prompt: Prompt for generating an image of a person, with {} for the name.
        aliases, bare_captions, seed, limits: As in `ForgetIdentities`.

    Raises:
        ValueError, FileNotFoundError: As in `ForgetIdentities`.
    """

    kinds: ClassVar[tuple[str, ...]] = ("object",)
    names_setting: ClassVar[str] = "object"

    object: Names
    aliases: Aliases
    template: ObjectTemplates
    utility_template: Template
    bare_captions: bool
    prompt: Template
    utility_prompt: Template
    seed: Seed
    limits: Limits

    def check(self, dataset: Dataset) -> None:
        """Raise if a name is unknown, a prompt has no {}, or a folder is missing or unwritable."""
        _check_prompts(
            utility_template=self.utility_template, prompt=self.prompt, utility_prompt=self.utility_prompt
        )
        find_names(self.object, class_names(Path(dataset.images)), dataset.images)
        _read_people(dataset)
        _check_shards(dataset)
        _curated_folder(dataset)

    def __call__(self, dataset: Dataset, *, progress: bool = False) -> Task:
        """Read the data and make the task."""
        return self.after((), dataset, progress=progress)

    def forgetting(self, names: Sequence[str]) -> Self:
        """The same settings for other objects."""
        return replace(self, object=list(names))

    def after(self, earlier: Sequence[str], dataset: Dataset, *, progress: bool = False) -> Task:
        """The task on a model that has forgotten other objects or people before."""
        objects, broken = read_folder(
            Path(dataset.images),
            templates=templates(self.template),
            fraction=1.0,
            seed=self.seed,
            max_broken=dataset.max_broken,
        )
        classes = objects.classes
        names = find_names(self.object, classes.names, dataset.images)
        files: dict[str, list[EncodedImage]] = {}
        for image, label in zip(objects.images, objects.labels, strict=True):
            files.setdefault(classes.names[label], []).append(image)
        before = [n for n in known(earlier, classes.names, names) if len(files.get(n, ())) > 1]
        others = [name for name in classes.names if name not in (*names, *before)]
        images = split_images(files, classes, [*names, *before], others, self.limits, self.seed)
        people = _read_people(dataset)
        faces, broken_faces = self._faces(people, dataset)
        utility = utility_images(faces, dataset, self.seed)
        broken = [*_missing_faces(people, dataset), *broken, *broken_faces]
        task = _task(self, dataset, "object", names, images, utility, broken, progress)
        return set_apart(task, earlier, mentions(task.retain, earlier, self.aliases))

    def _faces(self, people: CelebA, dataset: Dataset) -> tuple[LabelledImages, list[Broken]]:
        """(Faces of frequent people, a random share chosen by `seed`; the broken ones among them)."""
        classes = Classes(people.names, (self.utility_template,))
        faces = labelled({name: people.files[name] for name in people.frequent}, classes)
        count = round(len(faces) * dataset.utility_used)
        chosen = sorted(np.random.default_rng(self.seed).permutation(len(faces))[:count].tolist())
        return decodable(faces.select(chosen), dataset.max_broken, f"images of {dataset.celeba}")

    def curate(self, dataset: Dataset, *, progress: bool = False) -> Curated:
        """Only write the forget sets; nothing but the shards is read."""
        return _curate(self, dataset, _folder_names(self.object), progress)

    def preview(self, dataset: Dataset, *, progress: bool = False) -> dict[str, Preview]:
        """What `curate` would find, by name."""
        return _preview(self, dataset, _folder_names(self.object), progress)


def templates(which: str) -> tuple[str, ...]:
    """Prompt templates, each with {} in place of the name.

    Args:
        which: "simple" for open_clip's set of 7, "openai" for its set of 80, or a template with {}.

    Raises:
        ValueError: `which` is none of these.
    """
    if "{}" in which:
        return (which,)
    if which not in ("simple", "openai"):
        raise ValueError(f"templates: got {which!r}, want simple, openai, or a prompt with {{}} in it")
    from open_clip import OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES  # imports torch

    chosen = SIMPLE_IMAGENET_TEMPLATES if which == "simple" else OPENAI_IMAGENET_TEMPLATES
    return tuple(template("{}") for template in chosen)


def _check_prompts(**prompts: str) -> None:
    """Raise ValueError if a prompt has no place for the name. Without one, all names would be asked alike."""
    for name, prompt in prompts.items():
        if "{}" not in prompt:
            raise ValueError(f"task.{name}: got {prompt!r}, want {{}} in it for the name")


def _check_shards(dataset: Dataset) -> None:
    """Raise FileNotFoundError if a shard is missing that the task reads."""
    expand(dataset.retain, "dataset.retain")
    if dataset.forget is None:
        expand(dataset.shards)


def _read_people(dataset: Dataset) -> CelebA:
    return read_celeba(Path(dataset.celeba), identities=dataset.identities, frequent=dataset.frequent)


def _names_of(people: CelebA, dataset: Dataset) -> str:
    """Where the names of people come from, for messages."""
    if not people.numbered:
        return dataset.celeba
    return f"{dataset.celeba}, which are numbers (CelebA's authors send the file with names on request)"


def _missing_faces(people: CelebA, dataset: Dataset) -> list[Broken]:
    """Faces that are listed but not on disk. Raises ValueError if there are too many."""
    missing = list(people.broken)
    total = sum(map(len, people.files.values())) + len(missing)
    check_broken(missing, total, dataset.max_broken, f"dataset.celeba={dataset.celeba}")
    return missing


def _task(
    builder: ForgetIdentities | ForgetObjects,
    dataset: Dataset,
    kind: str,
    names: Sequence[str],
    images: Mapping[str, LabelledImages],
    utility: tuple[LabelledImages, LabelledImages],
    broken: Sequence[Broken],
    progress: bool,
) -> Task:
    """Leave out broken images, read the pairs, and put the task together."""
    sound: dict[str, LabelledImages] = {}
    for part, some in images.items():
        sound[part], bad = decodable(some, dataset.max_broken, f"images of {part}")
        broken = [*broken, *bad]
    forget, bad = _forget_sets(builder, dataset, names, progress)
    limit = builder.limits.retain_pairs
    retain, bad_pairs = read_retain(dataset.retain, dataset.rules, limit=limit, progress=progress)
    return Task(
        kind=kind,
        names=tuple(names),
        forget=forget,
        retain=retain,
        mentions=mentions(retain, names, builder.aliases),
        probe=Split(sound["probe_forget"], sound["probe_retain"], utility[0]),
        eval=Split(sound["eval_forget"], sound["eval_retain"], utility[1]),
        broken=(*broken, *bad, *bad_pairs),
        prompts=(builder.prompt, builder.utility_prompt),
    )


def _forget_sets(
    builder: ForgetIdentities | ForgetObjects, dataset: Dataset, names: Sequence[str], progress: bool
) -> tuple[dict[str, Pairs], list[Broken]]:
    """(Name -> its forget set, broken samples), read from `dataset.forget` or curated from the shards."""
    broken: list[Broken] = []
    if dataset.forget is None:
        curated = _curate(builder, dataset, names, progress)
        broken += curated.broken
        folders = curated.folders
    else:
        folders = {name: Path(dataset.forget) / name.replace(" ", "_") for name in names}
    forget = {}
    for name in names:
        pairs = load_forget(folders[name])
        pairs = pairs.select(range(min(len(pairs), builder.limits.forget_pairs or len(pairs))))
        forget[name] = pairs.with_caption(name) if builder.bare_captions else pairs
    return forget, broken


def _curate(
    builder: ForgetIdentities | ForgetObjects, dataset: Dataset, names: Sequence[str], progress: bool
) -> Curated:
    return curate(
        dataset.shards,
        names,
        aliases=builder.aliases,
        out=_curated_folder(dataset),
        limit=builder.limits.forget_pairs,
        rules=dataset.rules,
        progress=progress,
    )


def _preview(
    builder: ForgetIdentities | ForgetObjects, dataset: Dataset, names: Sequence[str], progress: bool
) -> dict[str, Preview]:
    return preview(
        dataset.shards,
        names,
        aliases=builder.aliases,
        out=_curated_folder(dataset),
        caption_key=dataset.caption_key,
        progress=progress,
    )


def _curated_folder(dataset: Dataset) -> Path:
    """Where forget sets are kept. A folder that is there may be somebody else's, to be read only.

    Raises:
        ValueError: It is not there, and cannot be made.
    """
    folder = Path(dataset.curated)
    if dataset.forget is None and not folder.exists():
        check_writable("dataset.curated", folder)
    return folder


def _folder_names(names: str | int | Sequence[str | int]) -> list[str]:
    """Names as they were typed, with spaces, without repetition."""
    return list({fold(name): name.replace("_", " ") for name in listed(names)}.values())
