import json

import pytest
import torch

from muwa.patch.apply import Patch
from muwa.patch.card import card_text, results_of
from muwa.types.edit import Move

PATCH = Patch(
    {"a": torch.ones(2)},
    {"a": torch.zeros(2)},
    "f" * 64,
    (Move("Ada Fox", "text", "a", 2.0, 0.25),),
    {"task": "style"},
)


def test_a_card_without_results_says_so():
    text = card_text(PATCH, "org/x", None, base_model=None, licence=None)
    assert text.startswith("---\nlibrary_name: muwa\n")
    assert "base_model" not in text
    assert "license" not in text
    assert "The run's results were not given with the patch." in text
    assert "- Layer for Ada Fox: `a` (text), step 2, relative norm 0.2500" in text
    assert f"- Fingerprint of the base: `{'f' * 64}`" in text


def test_results_of_another_edit_are_refused(tmp_path):
    path = tmp_path / "results.json"
    assert results_of(PATCH, path, required=False) is None
    with pytest.raises(FileNotFoundError, match="--results .*results.json: no such file"):
        results_of(PATCH, path, required=True)
    for text, message in (
        ("{", "not a results.json of muwa"),
        ("{}", "not a results.json of muwa"),
        (
            json.dumps({"metrics": {}, "edit": {"moves": []}}),
            "the results are of another edit than the patch's",
        ),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            results_of(PATCH, path, required=False)
    move = {"concept": "Ada Fox", "tower": "text", "layer": "a", "step": 2.0}
    path.write_text(json.dumps({"metrics": {"after": {}}, "edit": {"moves": [move]}}))
    assert results_of(PATCH, path, required=False) == {"after": {}}
