"""The house stays in shape: what `structure.py` measures is held to its limits."""

from pathlib import Path

import pytest
import structure

ROOT = Path(__file__).parent.parent
LIMITS = {
    "modules at the root": 14,
    "isinstance tests on families": 2,
    "isinstance tests on families outside muwa.models": 0,
    "functions of ten or more parameters": 12,
    "bodies over 50 lines": 3,
    "fmt: skip": 30,
    "lines over 110 columns, per cent": 2,
    "levels of imports": 10,
}


@pytest.fixture(scope="module")
def measured():
    return structure.measure(ROOT)


@pytest.mark.parametrize("what", LIMITS)
def test_the_structure_is_within_its_limits(measured, what):
    assert measured[what] <= LIMITS[what], "\n".join(structure.worst(ROOT))


def checkout(tmp_path, **files):
    """A checkout with these modules of muwa: name -> source."""
    for name, text in files.items():
        path = tmp_path / "muwa" / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_what_is_measured_by_hand(tmp_path):
    wide = "def f(a, b, c, d, e, f, g, h, i, *, j): pass\nclass C:\n    def m(self, a, b, c, d, e, f, g, h, i): pass\n"
    long = "def g():\n    '''Docstring.'''\n" + "    x = 1\n" * 51
    asks = (
        "from typing import Any\ndef h(x: Any):\n    return isinstance(x, Clip), isinstance(x, int | Vlm)\n"
    )
    found = structure.measure(checkout(tmp_path, wide=wide, long=long, models__asks=asks))
    assert found["modules at the root"] == 2
    assert found["isinstance tests on families"] == 2
    assert found["isinstance tests on families outside muwa.models"] == 0
    assert found["functions of ten or more parameters"] == 1
    assert found["functions of nine or more parameters"] == 2
    assert found["bodies over 50 lines"] == 1
    assert found["levels of imports"] == 1


def test_levels_count_the_longest_chain_and_no_type_only_import(tmp_path):
    root = checkout(
        tmp_path,
        a="from muwa import b\nfrom muwa.c import thing\n",
        b="import muwa.c\n",
        c="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from muwa import a\nthing = 1\n",
    )
    assert structure.measure(root)["levels of imports"] == 3


def test_a_circle_of_imports_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="circular import: muwa.a -> muwa.b -> muwa.a"):
        structure.measure(checkout(tmp_path, a="from muwa import b\n", b="from muwa import a\n"))
