import pytest
import tiny
import torch

from muwa.cache import Store
from muwa.eval.measure import evaluate
from muwa.layer_search.judge import Judge
from muwa.types import Edit


@pytest.mark.parametrize(("name", "tower"), [
    ("visual.transformer.resblocks.0.mlp.c_fc.weight", "vision"), ("visual.proj", "vision"), ("text_projection", "text"),
    ("transformer.resblocks.1.attn.in_proj_weight", "text"),
])  # fmt: skip
def test_encoding_one_tower_anew_gives_what_encoding_everything_gives(tmp_path, name, tower):
    model, probe = tiny.clip(), tiny.split()
    delta = 0.3 * torch.randn(model.weights[name].shape, generator=torch.Generator().manual_seed(0))
    edited = model.edited(Edit({name: delta}, ()))
    judge = Judge(model, probe)
    for one, where in ((model, ""), (edited, tower), (model, tower)):
        rates, full = judge(one, where), evaluate(one, probe, store=Store(tmp_path))
        for ours, theirs in (("forget_top1", "forget/top1"), ("forget_top5", "forget/top5"), ("forget_cosine", "forget/cosine"),
                             ("retain_top1", "retain/top1"), ("utility_top1", "utility/top1")):  # fmt: skip
            assert rates[ours] == pytest.approx(full[theirs].value, abs=1e-6), ours
    assert judge(edited, tower)["forget_cosine"] != judge(model, "")["forget_cosine"]
