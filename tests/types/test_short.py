"""What records print: sizes, no bytes; a law over all dataclasses of muwa."""

import ast
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import tiny
import torch

from muwa.types.data import Classes, LabelledImages, Pairs
from muwa.types.edit import Edit, Move
from muwa.types.example import Example
from muwa.types.gradients import Gradients
from muwa.types.metric import Metric, NameRate, Sample
from muwa.types.questions import Questions
from muwa.types.short import short_repr

ROOT = Path(__file__).parents[2]
# What is large, or holds pictures. A record with such a field prints itself by `short_repr`.
LARGE = re.compile(
    r"\b(Tensor|bytes|EncodedImage|FileSlice|Pairs|LabelledImages|Split|Task|Edit|Search|Evaluation|Metric)\b"
)
PICTURE = bytes(range(256)) * 400


def records():
    """(module, class node) of every public dataclass of muwa with a large field."""
    for path in sorted((ROOT / "muwa").rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if not isinstance(node, ast.ClassDef) or node.name.startswith("_"):
                continue
            if any("dataclass" in ast.unparse(one) for one in node.decorator_list):
                types = [ast.unparse(one.annotation) for one in node.body if isinstance(one, ast.AnnAssign)]
                if any(LARGE.search(one) and "Callable" not in one for one in types):
                    yield f"{path.relative_to(ROOT)}:{node.name}", node


RECORDS = dict(records())


def test_there_are_such_records():
    assert {"muwa/types/data.py:Task", "muwa/types/report.py:Report", "muwa/patch/apply.py:Patch"} <= set(
        RECORDS
    )


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_that_may_be_large_prints_itself_shortly(name):
    defined = [
        ast.unparse(one) for one in RECORDS[name].body if isinstance(one, ast.Assign | ast.FunctionDef)
    ]
    assert any(one == "__repr__ = short_repr" or one.startswith("def __repr__") for one in defined)


MANY = tuple(map(str, range(10_000)))
PAIRS = Pairs(MANY, (PICTURE,) * 10_000, MANY)
IMAGES = LabelledImages(MANY, (PICTURE,) * 10_000, (0,) * 10_000, Classes(MANY, ("a photo of {}",)))
DELTAS = {f"layer{i}": torch.ones(512, 512) for i in range(50)}
LARGE_ONES = {
    "pairs": PAIRS,
    "images": IMAGES,
    "classes": IMAGES.classes,
    "edit": Edit(DELTAS, (Move("A", "vision", "layer0", 1.0, 0.1),) * 50),
    "gradients": Gradients(DELTAS, DELTAS, 1, 1, {str(i): "x" * 64 for i in range(50)}),
    "example": Example("forget", "a photo of A", "A", torch.zeros(3, 512, 512), torch.zeros(3, 512, 512)),
    "questions": Questions(MANY, ((PICTURE,),) * 10_000),
    "metric": Metric(0.5, 9, by_name={name: NameRate(0.5, 1) for name in MANY},
                     samples=(Sample("a photo", 0, None, "A", 1.0, True),) * 10_000),
}  # fmt: skip


@pytest.mark.parametrize("name", LARGE_ONES)
def test_large_records_print_a_few_hundred_characters_and_no_picture(name):
    text = repr(LARGE_ONES[name])
    assert len(text) < 1000
    assert "\\x" not in text
    assert text.startswith(type(LARGE_ONES[name]).__name__)


def test_a_task_prints_its_names_and_the_sizes_of_its_sets():
    task = tiny.task()
    text = repr(task)
    assert len(text) < 1000
    assert f"forget={{{task.names[0]!r}: <Pairs of {len(task.forget[task.names[0]])}>}}" in text
    assert f"forget=<LabelledImages of {len(task.eval.forget)}>" in text


def test_a_model_prints_its_source_its_size_and_what_was_edited():
    model = tiny.clip()
    size = sum(weight.numel() for weight in model.weights.values())
    assert repr(model) == f"<Clip {model.source}, {size:,} weights>"
    layer = "visual.proj"
    edited = model.edited(Edit({layer: torch.ones_like(model.weights[layer])}, ()))
    assert repr(edited) == f"<Clip {model.source}, {size:,} weights; edited: {layer}>"


def test_other_values_print_as_python_prints_them():
    @dataclass
    class Record:
        number: float
        text: str
        nothing: None
        nested: dict
        __repr__ = short_repr

    assert repr(Record(0.1, "it's", None, {"a": [1, 2, 3]})) == (
        """Record(number=0.1, text="it's", nothing=None, nested={'a': [1, 2, ... 3 in all]})"""
    )
