import hashlib
import io
import json
from collections import Counter

import numpy as np
from PIL import Image

from muwa.data.benchmarks import gqa, pope
from muwa.miniature import population, question_files


def test_every_person_and_object_is_asked_about_and_every_style_is_shown():
    about = {key: (scene, kinds) for key, scene, kinds in question_files.scenes()}
    shown = Counter(scene.style for scene, _ in about.values())
    assert shown == {population.PLAIN: 220, **dict.fromkeys(population.STYLES, 20)}
    faces = [scene for scene, kinds in about.values() if "hat" in kinds]
    assert {scene.name for scene in faces} == {person.name for person in population.people()}
    assert sum(scene.hat for scene in faces) == 50
    assert {scene.name for scene, kinds in about.values() if "colour" in kinds} == set(population.OBJECTS)


def test_answers_fit_what_is_asked():
    open_ended, leading = question_files.questions()
    assert Counter(row["types"]["detailed"] for row in open_ended.values()) == {
        "identity": 100, "hat": 100, "describe": 200, "object": 100, "colour": 100, "style": 180,
    }  # fmt: skip
    row = open_ended["person_001_describe"]
    assert row["answer"] == f"a photo of {population.people()[1].name} wearing a hat"
    assert open_ended["neon_object_0_style"]["answer"] == "neon"
    for line in leading:
        name = population.people()[int(line["image"][7:10])].name
        assert (name in line["text"]) == (line["label"] == "yes")
    assert 35 < sum(line["label"] == "yes" for line in leading) < 65


def test_an_image_is_a_function_of_its_id_and_shows_what_is_asked_about():
    scenes = {key: scene for key, scene, _ in question_files.scenes()}
    one, again = (question_files.render("person_001", scenes["person_001"]) for _ in range(2))
    assert one.shape == (64, 64, 3)
    assert (one == again).all()
    bare = question_files.render("person_001", question_files.Scene(scenes["person_001"].name))
    assert np.abs(one.astype(int) - bare.astype(int))[:20].mean() > 5  # the hat is at the top
    assert (
        len(
            {
                hashlib.sha256(question_files.render(key, scene).tobytes()).digest()
                for key, scene in scenes.items()
            }
        )
        == 380
    )


def test_the_files_are_read_by_the_readers_of_published_benchmarks(miniature):
    folder = miniature / "world" / "vqa"
    asked = gqa(folder / "questions.json", folder / "images", brief=False)
    assert len(asked) == 780
    assert {one.kind for one in asked} == {"identity", "hat", "describe", "object", "colour", "style"}
    lines = pope(folder / "leading.json", folder / "images")
    assert len(lines) == 100
    assert lines[0].text.endswith("single word or phrase.")
    assert not any("single word" in one.text for one in asked)
    image = Image.open(io.BytesIO((folder / "images" / "object_000.jpg").read_bytes()))
    assert image.size == (64, 64)
    assert json.loads((folder / "questions.json").read_text())["object_000_colour"]["answer"] == "red"
