"""Signatures read from source, against those of the imported classes and functions."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

import pytest
import yaml
from conftest import CONF
from hydra.utils import get_object

from muwa.settings.source_signatures import Part, source_signature
from muwa.types.ranges import Count, Share


def targets(value):
    if isinstance(value, Mapping):
        found = [value["_target_"]] if "_target_" in value else []
        return found + [target for inner in value.values() for target in targets(inner)]
    return []


TARGETS = sorted(
    {
        t
        for path in CONF.rglob("*.yaml")
        for t in targets(yaml.safe_load(path.read_text()))
        if t.startswith("muwa.") and not t.startswith(("muwa.cli.callbacks.", "muwa.miniature.source"))
    }
)


@pytest.mark.parametrize("target", TARGETS)
def test_it_has_the_names_and_the_required_settings_of_the_real_signature(target):
    read, imported = source_signature(target), get_object(target)
    assert read.is_class == inspect.isclass(imported)
    real = inspect.signature(imported).parameters.values()
    want = {
        one.name: one.default is one.empty
        for one in real
        if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
    }
    got = {
        one.name: one.default is one.empty
        for one in read.signature.parameters.values()
        if one.kind is not one.VAR_KEYWORD
    }
    assert got == want


def test_there_are_such_targets():
    assert len(TARGETS) > 60


def test_the_annotations_are_those_of_the_source():
    read = source_signature("muwa.data.dataset.Dataset").signature.parameters
    assert read["utility"].annotation == Share
    assert (
        source_signature("muwa.layer_search.bisection.ParetoBisect")
        .signature.parameters["max_evals"]
        .annotation
        == Count
    )
    assert source_signature("muwa.methods.slug.Slug").signature.parameters["layer_search"].annotation is Part


def test_settings_that_a_function_hands_on_are_those_of_the_record_it_makes():
    read = source_signature("muwa.miniature.source.dataset").signature.parameters
    assert set(read) == {
        "root",
        "progress",
        *source_signature("muwa.data.dataset.Dataset").signature.parameters,
    }


@pytest.mark.parametrize(
    "target",
    [
        "muwa.nowhere.Nothing",
        "muwa.data.dataset.Nothing",
        "muwa",
        "",
        "os.system",
        "muwa.config.os.system",
        "muwa.../../setup.x",
    ],
)
def test_what_the_source_does_not_define_is_left_to_the_import(target):
    assert source_signature(target) is None
