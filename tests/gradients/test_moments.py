"""Second moments of weights, against what forward and backward hooks see in networks built from plain modules."""

import copy
from dataclasses import replace

import open_clip
import pytest
import tiny
import torch
from models.clip.test_staged_forward import hugging_face
from runtime.test_distributed import ranks
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from muwa.cache.store import Store
from muwa.data.samples import decode
from muwa.gradients.base import BatchLoss, Recipe
from muwa.gradients.mean import ClipGradients, input_moments, output_moments, shuffled_batches
from muwa.gradients.moments import (
    WeightProducts,
    _ignores_padding,
    _token_first,
    adder,
    clip_input_sums,
    clip_output_sums,
    minus,
    unfused_attention,
)
from muwa.models.clip.layers import matrices
from muwa.models.clip.model import Clip, Preparation, Towers
from muwa.run import Run

LOSS = BatchLoss("contrastive", 4, 0, "fp32")
RECIPE = Recipe("cosine", "contrastive", 4, 0, "fp32")


class PlainAttention(nn.Module):
    """The attention of open_clip's blocks, from two linear modules and the formula."""

    def __init__(self, attention):
        super().__init__()
        width = attention.embed_dim
        self.heads = attention.num_heads
        self.in_proj, self.out_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        with torch.no_grad():
            self.in_proj.weight.copy_(attention.in_proj_weight)
            self.in_proj.bias.copy_(attention.in_proj_bias)
            self.out_proj.weight.copy_(attention.out_proj.weight)
            self.out_proj.bias.copy_(attention.out_proj.bias)

    def forward(self, x, *_, attn_mask=None, **__):
        """(n, tokens, width) -> the same shape, and no attention weights."""
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.in_proj(x).chunk(3, -1)
        )
        scores = q @ k.mT / q.shape[-1] ** 0.5
        weights = (scores if attn_mask is None else scores + attn_mask).softmax(-1)
        return self.out_proj((weights @ v).transpose(1, 2).flatten(2)), None


class PlainProjection(nn.Module):
    """x @ W as a module: hooks see its input and its output."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone())

    def forward(self, x):
        return x @ self.weight


def plain_open_clip(model):
    """open_clip's network with `PlainAttention`, and its two encoders with `PlainProjection`."""
    network = copy.deepcopy(model._towers.model)
    for tower in (network.visual.transformer, network.transformer):
        for block in tower.resblocks:
            block.attn = PlainAttention(block.attn)
    vision, text = PlainProjection(network.visual.proj), PlainProjection(network.text_projection)
    network.visual.proj = None
    network.text_projection = nn.Parameter(torch.eye(32))
    modules = {
        name.replace("in_proj", "in_proj_weight") if name.endswith("in_proj") else f"{name}.weight": module
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }
    modules |= {"visual.proj": vision, "text_projection": text}
    return (
        modules,
        lambda x: vision(network.encode_image(x)),
        lambda tokens: text(network.encode_text(tokens)),
    )


def plain_modules(model):
    """A network whose weights are all those of modules: these modules, and its two encoders."""
    towers = copy.deepcopy(model._towers)
    network = towers.model
    modules = {
        f"{name}.weight": module
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }
    if model.source == "hf":
        return (
            modules,
            lambda pixels: network.get_image_features(pixel_values=pixels).pooler_output,
            lambda tokens: network.get_text_features(input_ids=tokens).pooler_output,
        )
    return modules, network.encode_image, network.encode_text


def timm_tower():
    """A timm tower inside open_clip, with a plain text tower."""
    torch.manual_seed(0)
    vision = {
        "timm_model_name": "vit_tiny_patch16_224",
        "timm_pool": "",
        "timm_proj": "linear",
        "image_size": 224,
    }
    text = {"context_length": 16, "vocab_size": 64, "layers": 2, "width": 32, "heads": 2}
    model = open_clip.CLIP(16, vision, text)
    prepare = Preparation(lambda image: image.resize((224, 224)), (0.5,) * 3, (0.5,) * 3)
    return Clip(Towers(model, model.encode_image, model.encode_text), prepare, tiny.tokenize, source="timm")


def plain_timm(model):
    """Its vision tower is made of modules; its text tower is not, and is not looked at."""
    modules, images, texts = plain_modules(model)
    return {name: one for name, one in modules.items() if name.startswith("visual.trunk")}, images, texts


def rows(module, tensor):
    """(n, k) rows of what a module is given or gives; a convolution is given windows that do not overlap."""
    if isinstance(module, nn.Conv2d) and tensor.shape[1] == module.in_channels:
        size, (n, channels, height, width) = module.kernel_size[0], tensor.shape
        cut = tensor.reshape(n, channels, height // size, size, width // size, size)
        return cut.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(0, 2)
    return tensor.movedim(1, -1).flatten(0, -2) if isinstance(module, nn.Conv2d) else tensor.flatten(0, -2)


def seen_by_hooks(model, plain, pairs, batches):
    """(input moments, output moments) of the sum over batches of n_b times the contrastive loss."""
    modules, encode_image, encode_text = plain(model)
    inputs = dict.fromkeys(modules, 0.0)
    outputs = dict(inputs)

    def add(sums, name, module, tensor):
        x = rows(module, tensor.detach()).double()
        sums[name] = sums[name] + x.T @ x

    def look(name):
        def hook(module, given, output):
            add(inputs, name, module, given[0])
            output.register_hook(lambda d: add(outputs, name, module, d))

        return hook

    for name, module in modules.items():
        module.requires_grad_(True).register_forward_hook(look(name))
    for batch in batches:
        pixels = model.prepare.scale(torch.stack([model.prepare(decode(pairs.images[i])) for i in batch]))
        v = F.normalize(encode_image(pixels), dim=-1)
        t = F.normalize(encode_text(model.tokenize([pairs.captions[i] for i in batch])), dim=-1)
        logits, own = model.weights["logit_scale"].exp() * v @ t.T, torch.arange(len(batch))
        (len(batch) * (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2).backward()
    return inputs, outputs


def same(got, want, rounding=2e-4):
    """Two moments differ by at most `rounding` of their largest value."""
    want = torch.as_tensor(want, dtype=torch.float64)
    assert got.shape == want.shape
    assert (got.double() - want).abs().max() <= rounding * want.abs().max().clamp(min=1e-12)


def blocks_of(name, moment):
    """A moment as it is; the last blocks of a fused attention weight may be seen apart: the query, key and value."""
    if not name.endswith("in_proj_weight"):
        return [moment]
    width = len(moment) // 3
    return [moment[:width, :width], moment[width:, width:]]


MODELS = {
    "open_clip": (tiny.clip, plain_open_clip),
    "hugging_face": (hugging_face, plain_modules),
    "timm": (timm_tower, plain_timm),
}


@pytest.mark.parametrize("name", MODELS)
def test_moments_are_those_of_what_hooks_see(name):
    make, plain = MODELS[name]
    model, pairs = make(), tiny.pairs(4 if name == "timm" else 10)
    batches = shuffled_batches(len(pairs), 4, 0)
    inputs, outputs = seen_by_hooks(model, plain, pairs, batches)
    got_inputs = clip_input_sums(model, pairs, batch_size=3, run=Run())
    got_outputs = clip_output_sums(model, pairs, batches, LOSS, micro_batch_size=None, run=Run())
    assert set(got_inputs) == set(got_outputs) == set(matrices(model.weights))
    seen = {weight for weight in inputs if weight in got_inputs}  # some embeddings are modules too
    assert len(seen) >= 12
    assert name == "timm" or seen == set(got_inputs)
    for weight in seen:
        same(got_inputs[weight], inputs[weight])
        assert outputs[weight].abs().max() > 0
        for got, want in zip(
            blocks_of(weight, got_outputs[weight]), blocks_of(weight, outputs[weight]), strict=True
        ):
            same(got, want)


def test_the_query_rows_that_a_last_block_uses_alone_have_their_own_block():
    """open_clip's last vision block computes the query of the class token only: its d is not seen with that of k, v."""
    name = "visual.transformer.resblocks.{}.attn.in_proj_weight"
    got = clip_output_sums(tiny.clip(), tiny.pairs(8), [range(8)], LOSS, micro_batch_size=None, run=Run())
    assert got[name.format(1)][:32, :32].abs().max() > 0
    assert not got[name.format(1)][:32, 32:].any()
    assert got[name.format(0)][:32, 32:].any()


WEIGHT = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
ROWS = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))


def recorded(weights, compute):
    """What `WeightProducts` records for a computation and its backward pass: [(side, name, rows, first row)]."""
    seen = []
    leaves = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
    with WeightProducts(
        weights,
        lambda name, x, row: seen.append(("in", name, x.clone(), row)),
        lambda name, d, row: seen.append(("out", name, d.clone(), row)),
    ):
        compute(leaves).backward()
    return seen


@pytest.mark.parametrize("shape", [(5, 4), (1, 5, 4), (5, 1, 4)])
def test_a_linear_map_of_any_shape_and_of_some_rows(shape):
    """y = sum of c * (x W^T) for rows 2, 3 and 4 of W: d is c, and the input is x."""
    x, c = ROWS.view(shape).clone().requires_grad_(), torch.arange(15.0).view(*shape[:-1], 3)
    seen = recorded({"w": WEIGHT}, lambda leaves: (c * F.linear(x, leaves["w"][2:5], torch.ones(3))).sum())
    assert [(side, name, row) for side, name, _, row in seen] == [("in", "w", 2), ("out", "w", 2)]
    assert torch.equal(seen[0][2], ROWS)
    assert torch.equal(seen[1][2], c.reshape(5, 3))
    sums = {"w": torch.zeros(6, 6)}
    adder(sums, outputs=True)("w", seen[1][2], 2)
    want = torch.zeros(6, 6)
    want[2:5, 2:5] = c.reshape(5, 3).T @ c.reshape(5, 3)
    assert torch.equal(sums["w"], want)


@pytest.mark.parametrize("name", ["visual.proj", "text_projection"])
def test_a_projection_has_its_inputs_first(name):
    x, c = ROWS.clone().requires_grad_(), torch.arange(30.0).view(5, 6)
    seen = recorded({name: WEIGHT.T.contiguous()}, lambda leaves: (c * (x @ leaves[name])).sum())
    assert [(side, row) for side, _, _, row in seen] == [("in", 0), ("out", 0)]
    assert torch.equal(seen[0][2], ROWS)
    assert torch.equal(seen[1][2], c)


def test_a_square_weight_is_not_taken_for_its_transpose():
    """W x and x W have the same shapes: which of them it is, the name and the order in memory say."""
    square, c = WEIGHT[:4].clone(), torch.arange(20.0).view(5, 4)
    for name in ("visual.proj", "mlp.weight"):
        x = ROWS.clone().requires_grad_()

        def compute(leaves, x=x, name=name):
            return (c * (x @ (leaves[name] if name == "visual.proj" else leaves[name].T))).sum()

        seen = recorded({name: square}, compute)
        assert [side for side, *_ in seen] == ["in", "out"]
        assert torch.equal(seen[0][2], ROWS)
        assert torch.equal(seen[1][2], c)


def test_other_products_are_not_recorded():
    other = WEIGHT.clone()
    seen = recorded({"w": WEIGHT}, lambda leaves: (ROWS @ other.T).sum() + leaves["w"].sum())
    assert seen == []


def test_the_inputs_of_a_convolution_are_its_windows():
    """3 x 3 windows with stride 2 and a border of one, cut by hand; an entry of d for each of them."""
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(5, 2, 3, 3, generator=generator), torch.randn(2, 2, 6, 6, generator=generator)
    c = torch.randn(2, 5, 3, 3, generator=generator)
    seen = recorded(
        {"conv1.weight": weight}, lambda leaves: (c * F.conv2d(x, leaves["conv1.weight"], None, 2, 1)).sum()
    )
    framed = torch.zeros(2, 2, 8, 8)
    framed[:, :, 1:7, 1:7] = x
    windows = [
        framed[i, :, r : r + 3, s : s + 3].flatten() for i in (0, 1) for r in (0, 2, 4) for s in (0, 2, 4)
    ]
    assert [(side, row) for side, _, _, row in seen] == [("in", 0), ("out", 0)]
    assert torch.equal(seen[0][2], torch.stack(windows))
    assert torch.equal(
        seen[1][2], torch.stack([c[i, :, r, s] for i in (0, 1) for r in range(3) for s in range(3)])
    )
    torch.testing.assert_close(
        seen[0][2] @ weight.flatten(1).T, F.conv2d(x, weight, None, 2, 1).movedim(1, -1).flatten(0, -2)
    )


def test_sums_are_subtracted_and_what_another_lacks_is_zero():
    one, two = {"a": torch.ones(1, 1), "b": torch.ones(1, 1)}, {"a": torch.full((1, 1), 3.0)}
    assert {name: total.item() for name, total in minus(one, two).items()} == {"a": -2.0, "b": 1.0}
    assert {name: total.item() for name, total in minus(one, two, -1.0).items()} == {"a": 4.0, "b": 1.0}
    assert one["a"].item() == 1


def test_fused_attention_is_back_after_an_error():
    before = torch.backends.mha.get_fastpath_enabled()
    with pytest.raises(ValueError, match="inside"), unfused_attention():
        assert not torch.backends.mha.get_fastpath_enabled()
        raise ValueError("inside")
    assert torch.backends.mha.get_fastpath_enabled() == before


def test_padding_that_the_text_tower_does_not_look_at_does_not_count():
    model, texts = tiny.clip(), ("a fox", "hens", "a photo of Ada Fox")  # 7, 6 and 16 tokens of 16
    pairs = replace(tiny.pairs(3), captions=texts)
    found = clip_input_sums(model, pairs, batch_size=5, run=Run())
    block, given = model._towers.model.transformer.resblocks[1], {}
    hooks = [
        part.register_forward_hook(lambda module, inputs, output, name=name: given.update({name: output}))
        for name, part in (("attn.in_proj_weight", block.ln_1), ("mlp.c_fc.weight", block.ln_2))
    ]
    with torch.no_grad():
        model._towers.model.encode_text(tiny.tokenize(list(texts)))
    for hook in hooks:
        hook.remove()
    assert sorted(given) == ["attn.in_proj_weight", "mlp.c_fc.weight"]
    for name, output in given.items():
        # the text, its end, and the first place of padding, which is not told from it
        x = torch.cat([output[0, :8], output[1, :7], output[2]])
        same(found[f"transformer.resblocks.1.{name}"], x.T @ x)


def test_padding_has_no_gradient_where_the_text_tower_does_not_look_at_it():
    """The same output moments as hooks see on all 16 tokens of texts that are shorter."""
    model, pairs = tiny.clip(), replace(tiny.pairs(3), captions=("a fox", "hens", "a photo of Ada Fox"))
    _, outputs = seen_by_hooks(model, plain_open_clip, pairs, [range(3)])
    got = clip_output_sums(model, pairs, [range(3)], LOSS, micro_batch_size=None, run=Run())
    for name in ("transformer.resblocks.0.mlp.c_fc.weight", "transformer.resblocks.1.mlp.c_proj.weight"):
        assert outputs[name].any()
        same(got[name], outputs[name])


def test_padding_counts_where_the_text_tower_looks_at_it():
    network = tiny.clip()._towers.model
    network.attn_mask = None
    model = Clip(
        Towers(network, network.encode_image, network.encode_text), tiny.prepare, tiny.tokenize, source="tiny"
    )
    assert not _ignores_padding(model, tiny.tokenize(["a fox"]))
    assert _ignores_padding(tiny.clip(), tiny.tokenize(["a fox"]))
    assert not _ignores_padding(tiny.clip(), tiny.tokenize(["a photo of Ada Fox"]))  # no padding to try it on
    pairs = replace(tiny.pairs(2), captions=("a fox", "hens"))
    inputs, _ = seen_by_hooks(model, plain_open_clip, pairs, [range(2)])
    name = "transformer.resblocks.1.mlp.c_fc.weight"
    same(clip_input_sums(model, pairs, batch_size=2, run=Run())[name], inputs[name])


def test_what_attention_is_given_comes_by_token():
    by_token = _token_first(tiny.clip(), tiny.tokenize(["a fox"]))
    want = {
        f"transformer.resblocks.{i}.attn.{name}"
        for i in (0, 1)
        for name in ("in_proj_weight", "out_proj.weight")
    }
    assert by_token == want


@pytest.mark.parametrize("micro", [1, 3])
def test_a_micro_batch_changes_rounding_only(micro):
    model, pairs, batches = tiny.clip(), tiny.pairs(10), shuffled_batches(10, 4, 0)
    whole = clip_output_sums(model, pairs, batches, LOSS, micro_batch_size=None, run=Run())
    parts = clip_output_sums(model, pairs, batches, LOSS, micro_batch_size=micro, run=Run())
    inputs = [clip_input_sums(model, pairs, batch_size=size, run=Run()) for size in (10, micro)]
    assert set(parts) == set(whole) == set(inputs[0]) == set(inputs[1]) == set(matrices(model.weights))
    for name in whole:
        same(parts[name], whole[name], 1e-4)
        same(inputs[1][name], inputs[0][name], 1e-4)


def test_the_model_keeps_its_weights_and_needs_no_gradient():
    model = tiny.clip()
    before = {name: w.clone() for name, w in model.weights.items()}
    clip_input_sums(model, tiny.pairs(3), batch_size=2, run=Run())
    clip_output_sums(model, tiny.pairs(3), [range(3)], LOSS, micro_batch_size=None, run=Run())
    assert all(torch.equal(w, before[name]) and not w.requires_grad for name, w in model.weights.items())


@pytest.mark.parametrize("batch_size", [2, 4, 12])
def test_pairs_that_mention_a_name_are_left_out_exactly(batch_size):
    """Against hooks on the other pairs alone. Of batches of two, one pair is left, whose contrastive loss is constant."""
    model, task, recipe = tiny.clip(), tiny.task(), replace(RECIPE, batch_size=batch_size)
    batches = [[i for i in batch if i not in task.mentions] for batch in shuffled_batches(12, batch_size, 0)]
    inputs, outputs = seen_by_hooks(
        model, plain_open_clip, task.retain, [batch for batch in batches if batch]
    )
    got_inputs = input_moments(model, task, recipe, Run())
    got_outputs = output_moments(model, task, recipe, Run())
    assert set(got_inputs) == set(got_outputs) == set(inputs)
    for name in inputs:
        same(got_inputs[name], inputs[name])
        for got, want in zip(blocks_of(name, got_outputs[name]), blocks_of(name, outputs[name]), strict=True):
            same(got, want, 1e-3)


def test_a_batch_of_which_nothing_is_left_goes_out_whole():
    task = replace(tiny.task(), mentions=tuple(shuffled_batches(12, 4, 0)[1]))
    batches = [shuffled_batches(12, 4, 0)[at] for at in (0, 2)]
    got = output_moments(tiny.clip(), task, RECIPE, Run())
    want = clip_output_sums(tiny.clip(), task.retain, batches, LOSS, micro_batch_size=None, run=Run())
    assert set(got) == set(want) == set(matrices(tiny.clip().weights))
    for name in want:
        same(got[name], want[name], 1e-3)


def test_requests_share_the_sums_over_all_pairs(tmp_path):
    model, task = tiny.clip(), tiny.task()
    ClipGradients().moments(model, task, RECIPE, Run(Store(tmp_path)), outputs=True)
    store = Store(tmp_path)
    everything = ClipGradients().moments(model, replace(task, mentions=()), RECIPE, Run(store), outputs=True)
    assert store.events["moments/inputs"] == store.events["moments/outputs"] == "hit"
    other = Store(tmp_path)
    ClipGradients().moments(model, replace(task, mentions=(1,)), RECIPE, Run(other), outputs=True)
    assert other.events["moments/inputs"] == other.events["moments/outputs"] == "partial"
    assert set(everything[""]["inputs"]) == set(matrices(model.weights))


def test_output_moments_are_computed_only_if_they_are_asked_for(tmp_path):
    store = Store(tmp_path)
    got = ClipGradients().moments(tiny.clip(), tiny.task(), RECIPE, Run(store), outputs=False)
    assert got[""]["outputs"] == {}
    assert "moments/outputs" not in store.events


PROGRAM = """
import sys
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, "tests")
import tiny
from safetensors.torch import save_file
from muwa.cache.store import Store
from muwa.gradients.base import Recipe
from muwa.gradients.mean import ClipGradients
from muwa.run import Run
from muwa.runtime.distributed import join

out = Path(sys.argv[1])
with join("cpu") as ranks:
    recipe = Recipe("cosine", "contrastive", 5, 0, "fp32", 1)
    task = replace(tiny.task(), mentions=(8,))
    run = Run(Store(out / "cache"), distributed=ranks)
    found = ClipGradients().moments(tiny.clip(), task, recipe, run, outputs=True)
    assert (found is None) == (not ranks.is_main)
    if found is not None:
        save_file({f"{side}/{name}": m for side in found[""] for name, m in found[""][side].items()}, out / "two")
"""


def test_two_processes_give_the_moments_of_one(tmp_path):
    """One pair mentions the name, so that one of the processes has no pair of that sum."""
    (tmp_path / "program.py").write_text(PROGRAM)
    ranks(2, str(tmp_path / "program.py"), str(tmp_path))
    task, recipe = replace(tiny.task(), mentions=(8,)), replace(RECIPE, batch_size=5)
    want = ClipGradients().moments(tiny.clip(), task, recipe, Run(), outputs=True)[""]
    got = load_file(tmp_path / "two")
    assert set(got) == {f"{side}/{name}" for side in want for name in want[side]}
    for side, moments in want.items():
        for name, moment in moments.items():
            same(got[f"{side}/{name}"], moment, 1e-3)
