import torch

from muwa.types.search import BOTH_TOWERS, LAMBDA, NOTHING_EDITED, Candidate, Evaluation, Part

TWO = Candidate({"text_encoder": "a", "text_encoder_2": "b"}, BOTH_TOWERS, ("a", "text_encoder_2/b"))


def test_a_part_is_some_rows_some_columns_or_the_whole_tensor():
    weights = {"w": torch.arange(6).view(3, 2)}
    assert Part("w", 0, 1, 2).of(weights).tolist() == [[2, 3], [4, 5]]
    assert Part("w", 1, 1, 1).of(weights).tolist() == [[1], [3], [5]]
    assert Part("w").of(weights) is weights["w"]


def test_the_name_of_a_candidate_joins_its_layers():
    assert TWO.name == "a + text_encoder_2/b"
    assert Candidate({"": "proj"}, "vision").name == "proj"
    assert NOTHING_EDITED.name == ""


def test_the_record_of_an_evaluation_has_the_first_keys_first():
    rates = {"forget_top1": 0.5, "retain_top1": 0.8}
    row = Evaluation(TWO, 3, 0.1, LAMBDA, 0.2, True, 0.5, 0.85, 0.01, 0.3, rates)
    assert list(row.record().items()) == [
        ("layer", "a + text_encoder_2/b"),
        ("tower", "both"),
        ("iteration", 3),
        ("step", 0.1),
        ("relative_norm", 0.2),
        ("forget_top1", 0.5),
        ("retain_top1", 0.8),
        ("feasible", True),
        ("step_unit", "lambda"),
        ("forgotten", 0.5),
        ("kept", 0.85),
        ("layers", {"text_encoder": "a", "text_encoder_2": "b"}),
    ]


def test_margins_stand_last_in_a_record_if_they_were_measured():
    row = Evaluation(TWO, 3, 0.1, LAMBDA, 0.2, True, 0.5, 0.85, 0.01, 0.3, {}, -0.01, {"Ada Fox": -0.2})
    assert list(row.record().items())[-2:] == [("kept_margin", -0.01), ("forget_bounds", {"Ada Fox": -0.2})]
