import json
from dataclasses import replace

import pytest
import torch
from noticed import noticed
from safetensors.torch import load_file, save_file

from muwa.methods._training_state import FILE, FORMAT, Position, resume, save
from muwa.types.search import ALL_WEIGHTS, BOTH_TOWERS, Candidate, Evaluation

METRICS = {
    "forget_top1": 0.5,
    "forget_top5": 1.0,
    "forget_cosine": 0.1,
    "retain_top1": 1 / 3,
    "utility_top1": 0.7,
}
ROW = Evaluation(Candidate({"": ALL_WEIGHTS}, BOTH_TOWERS, ("a", "b")), 1, 1e-3, "learning rate", 0.1, False, 1.0,
                 0.5, 0.01, 0.1, METRICS)  # fmt: skip


class Count:
    """A training whose state is one number."""

    def __init__(self, value=0.0, done=0):
        self.value, self.done = torch.tensor(value), done

    def state(self):
        return {"weight/w": self.value}

    def load(self, state, done):
        self.value, self.done = state["weight/w"], done


def test_a_position_is_read_back_field_by_field(tmp_path):
    deltas = {"1": {"w": torch.tensor([1.0, 2.0]), "v.w": torch.tensor([[3.0]])}, "10": {"w": torch.zeros(2)}}
    position = Position(3, 2, [ROW, replace(ROW, iteration=2, feasible=True)], deltas)
    save(tmp_path / "state", Count(7.0, 30), position)
    training = Count()
    got = resume(tmp_path / "state", training)
    assert (training.value.item(), training.done) == (7.0, 30)
    assert (got.epoch, got.first_feasible, got.trace) == (3, 2, position.trace)
    assert {key: sorted(one) for key, one in got.deltas.items()} == {"1": ["v.w", "w"], "10": ["w"]}
    assert all(torch.equal(got.deltas[key][name], one[name]) for key, one in deltas.items() for name in one)
    assert [path.name for path in (tmp_path / "state").iterdir()] == [FILE]


def test_without_a_folder_nothing_is_kept(tmp_path):
    save(None, Count(7.0, 30), Position(3))
    training = Count(1.0, 5)
    assert resume(None, training) == resume(tmp_path, training) == Position()
    assert (training.value.item(), training.done) == (1.0, 5)


@pytest.mark.parametrize(
    "damage", ["half", "other format", "no JSON", "deep JSON", "one bit", "another epoch"]
)
def test_a_state_that_is_damaged_or_of_another_format_is_a_start(tmp_path, damage):
    save(tmp_path, Count(7.0, 30), Position(3))
    path = tmp_path / FILE
    raw = path.read_bytes()
    if damage == "half":
        path.write_bytes(raw[:100])
    elif damage == "one bit":
        path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    elif damage == "another epoch":
        assert raw.count(b'epoch\\\\\\": 3') == 1
        path.write_bytes(raw.replace(b'epoch\\\\\\": 3', b'epoch\\\\\\": 9'))
    else:
        metadata = {
            "other format": {"muwa.descent/1": json.dumps({"done": 30})},
            "no JSON": {FORMAT: "{"},
            "deep JSON": {FORMAT: "[" * 100_000},
        }[damage]
        save_file(load_file(path), path, metadata=metadata)
    training = Count()
    with noticed("^The saved state of the training is damaged .*; the training starts anew$"):
        assert resume(tmp_path, training) == Position()
    assert training.done == 0
