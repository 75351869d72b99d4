import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch

from muwa.cache import keys
from muwa.cache.keys import key_of, key_parts, modules_of, name_of
from muwa.cache.store import Store
from muwa.fingerprint import Content, digest, fingerprint
from muwa.models.clip.embeddings import prepared
from muwa.run import Run
from muwa.types.data import Classes, LabelledImages, Split

HERE = __name__


def add(x, y=1, *, bar=None):
    return x + y


def echo(value):
    return value


@dataclass(frozen=True)
class Scaled:
    """A record with `__call__`, as a layer search is."""

    factor: int

    def __call__(self, x, *, bar=None):
        return self.factor * x


class Weights(Content):
    """Content that is no dataclass, as a model is."""

    fingerprint = "weights"


def parts_of(function, *args, free=None, **keywords):
    return key_parts("s", function, args, keywords, free or {})


def test_the_parts_are_stage_function_code_and_every_argument(monkeypatch):
    monkeypatch.setattr(keys, "code_fingerprint", lambda modules: "code")
    assert parts_of(add, 3, free={"bar": object()}) == {
        "stage": "s",
        "function": f"{HERE}.add",
        "code": "code",
        "argument x": fingerprint(3),
        "argument y": fingerprint(1),
    }


def test_the_key_is_the_digest_of_the_parts_in_the_order_of_their_names():
    assert key_of({"b": "2", "a": "1"}) == digest(['{"a": "1", "b": "2"}'])


def test_what_a_partial_binds_is_an_argument():
    assert parts_of(partial(add, 5), 6) == parts_of(partial(add, y=6), 5) == parts_of(add, 5, y=6)
    assert parts_of(partial(add, 5), 6) != parts_of(partial(add, 6), 6)


def test_a_record_that_is_called_is_keyed_by_its_class_and_fields():
    parts = parts_of(Scaled(2), 3, free={"bar": None})
    assert parts["function"] == f"{HERE}.Scaled"
    assert set(parts) == {"stage", "function", "code", "argument self", "argument x"}
    assert parts["argument self"] == fingerprint(Scaled(2)) != fingerprint(Scaled(3))


def test_tensors_are_told_apart_by_dtype_shape_and_bits():
    one = torch.zeros(4)
    others = [one.half(), one.view(2, 2), -one, torch.zeros(5)]
    assert len({parts_of(echo, tensor)["argument value"] for tensor in (one, *others)}) == 5
    assert parts_of(echo, one) == parts_of(echo, torch.zeros(4))


def test_keys_of_a_mapping_are_told_apart_by_kind():
    assert parts_of(echo, {1: "x"}) != parts_of(echo, {"1": "x"})


def test_a_function_without_a_name_and_an_unknown_argument_are_refused():
    with pytest.raises(TypeError, match="a lambda or inner function has no name"):
        name_of(lambda x: x + 1)
    with pytest.raises(TypeError, match="a lambda or inner function has no name"):
        parts_of(echo, lambda: 1)
    with pytest.raises(TypeError, match="cannot fingerprint set: subclass"):
        parts_of(echo, {1})


def test_the_code_part_is_of_the_modules_of_function_arguments_and_services(monkeypatch):
    seen = []
    monkeypatch.setattr(keys, "code_fingerprint", lambda modules: seen.append(modules) or "code")
    split = Split(*[LabelledImages((), (), (), Classes(("a",), ("{}",)))] * 3)
    parts_of(add, 1, 2)
    parts_of(partial(echo, value=Scaled(1)))
    parts_of(Scaled(2), [Weights()])
    parts_of(echo, {"split": split})
    parts_of(add, 1, free={"bar": Run()})
    parts_of(add, 1, free={"bar": Store("x").get})
    assert seen == [
        {HERE},
        {HERE},
        {HERE},
        {HERE, "muwa.types.data"},
        {HERE, "muwa.run"},
        {HERE, "muwa.cache.store"},
    ]


def test_modules_of_python_and_of_packages_hold_no_code_of_ours():
    assert modules_of([json.dumps, Path("x"), torch.nn.Linear, pytest.raises, 1, "a", None]) == set()
    assert modules_of([prepared, [add], {"a": partial(add, echo)}]) == {prepared.__module__, HERE}
