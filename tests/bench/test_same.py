import json

import pytest
import torch
from safetensors.torch import save_file

from bench.same import EQUAL, compared, main, tensors, values


def written(out, *, gradient=(1.0, 2.0), layer="visual.proj", step=0.5, top1=0.25):
    """The files of one run that are compared."""
    run = out / "runs" / "day" / "time"
    run.mkdir(parents=True)
    metrics = {"forget/top1": {"value": top1}}
    results = {
        "edit": {"layer": layer, "step": step},
        "trace": [1, 2],
        "metrics": {"before": metrics, "after": metrics},
    }
    (run / "results.json").write_text(json.dumps(results))
    save_file({layer: torch.tensor(gradient)}, run / "patch.safetensors")
    for stage in ("forget", "retain"):
        entry = out / "cache" / "gradients" / stage / "key"
        entry.mkdir(parents=True)
        save_file({"0": torch.tensor(gradient)}, entry / "value.safetensors")
    return out


def test_the_same_run_is_equal_to_the_bit(tmp_path, capsys):
    one, two = written(tmp_path / "a"), written(tmp_path / "b")
    assert set(compared(one, two).values()) == {EQUAL}
    main([str(one), str(two)])
    assert f"layer                  {EQUAL}\n" in capsys.readouterr().out


def test_what_differs_is_measured(tmp_path):
    one, two = written(tmp_path / "a"), written(tmp_path / "b", gradient=(1.0, 2.5), step=0.25, top1=0.5)
    found = compared(one, two)
    assert found["gradients/forget"] == "largest difference 2.5e-01 of the largest value"  # 0.5 of 2
    assert found["step"] == "0.5 | 0.25, 5.0e-01 apart"
    assert found["metrics after"] == "forget/top1 0.25 | 0.5, 5.0e-01 apart"
    assert found["layer"] == found["evaluations"] == EQUAL
    assert found["patch, bytes"] == "differ"


def test_other_layers_are_named(tmp_path):
    assert values(["a", "b"]) == "a | b"
    assert tensors({"a": torch.ones(1)}, {"b": torch.ones(1)}) == "other tensors: a, b"


def test_a_folder_without_one_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="0 runs in it, want one; give each run its own paths.outputs"):
        compared(tmp_path, tmp_path)
