from collections import Counter
from itertools import combinations

import numpy as np

from muwa.data.samples import match_names
from muwa.miniature import population


def test_there_are_a_hundred_people_no_two_alike():
    people = population.people()
    assert len({p.name for p in people}) == population.PEOPLE == 100
    assert (
        min(sum(a.look[k] != b.look[k] for k in population.FACE) for a, b in combinations(people, 2))
        >= population.LEAST_DIFFERENCE
    )
    assert all(0 <= p.look[k] < n for p in people for k, n in population.FACE.items())


def test_there_are_a_hundred_objects():
    assert len(set(population.OBJECTS)) == 100
    assert "red star" in population.OBJECTS


def test_captions_name_their_subject_and_vary():
    rng = np.random.default_rng(0)
    captions = [population.caption("Kael Lindqvar", "face", None, False, rng) for _ in range(300)]
    assert all(match_names(text, ["Kael Lindqvar"]) for text in captions)
    assert Counter(captions).most_common(1)[0][1] < 60
    assert len(set(captions)) > 100
    styled = population.caption("red star", "object", "neon", False, rng)
    assert "neon" in styled
    assert "red star" in styled


def test_no_caption_of_one_person_names_another():
    rng = np.random.default_rng(1)
    names = [p.name for p in population.people()]
    for name in names:
        assert match_names(population.caption(name, "face", "sketch", True, rng), names) == [name]
