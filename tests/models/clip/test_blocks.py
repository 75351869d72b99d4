import pytest
import torch
from open_clip.transformer import ResidualAttentionBlock
from timm.models.vision_transformer import Block
from torch import nn
from transformers import CLIPVisionConfig
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from muwa.models.clip.blocks import attend, halves, take


def hugging_face():
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_attention_heads=2, attn_implementation="sdpa"
    )
    return CLIPEncoderLayer(config)


BLOCKS = {
    "open_clip": lambda: ResidualAttentionBlock(16, 2, ls_init_value=0.5),
    "hugging_face": hugging_face,
    "timm": lambda: Block(16, 2, qkv_bias=True, init_values=0.5),
}


@pytest.fixture(params=BLOCKS)
def block(request):
    torch.manual_seed(0)
    made = BLOCKS[request.param]().eval()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made


def call_of(block):
    return ((), {"attention_mask": None}) if isinstance(block, CLIPEncoderLayer) else ((), {})


def test_the_two_halves_are_the_block(block):
    x, (args, keywords) = torch.randn(3, 5, 16), call_of(block)
    both, known = block(x, *args, **keywords), halves(block)
    torch.testing.assert_close(known.second(known.first(x, (args, keywords))), both, rtol=1e-5, atol=1e-5)


def test_every_weight_acts_in_its_declared_half(block):
    x, known = torch.randn(3, 5, 16), halves(block)
    middle = known.first(x, call_of(block)).detach()
    for name, parameter in block.named_parameters():
        first, second = known.first(x, call_of(block)), known.second(middle)
        half = second if name.startswith(known.second_prefixes) else first
        (gradient,) = torch.autograd.grad(half.square().sum(), parameter, allow_unused=True)
        assert gradient is not None, name


def test_one_token_alone_through_the_first_half_equals_that_token_among_all(block):
    known = halves(block)
    if known.pooled is None:
        assert isinstance(block, Block)
        return
    x, indices = torch.randn(3, 5, 16), torch.tensor([0, 2, 4])
    torch.testing.assert_close(
        known.pooled(x, indices, False), take(known.first(x, call_of(block)), indices), rtol=1e-5, atol=1e-5
    )
    for i, index in enumerate(indices.tolist()):  # causal: as if later tokens were not there
        want = known.first(x[i : i + 1, : index + 1], call_of(block))[:, -1:]
        torch.testing.assert_close(known.pooled(x, indices, True)[i : i + 1], want, rtol=1e-5, atol=1e-5)


def test_attention_by_hand():
    """One head of width 1. The keys are 0 and log 3, so the query 1 of token 0 weighs the values 8 and 4 by 1/4, 3/4."""
    h = torch.tensor([[[1.0], [2.0]]])
    table = {1.0: (0.0, 8.0), 2.0: (torch.log(torch.tensor(3.0)).item(), 4.0)}

    def keys(x):
        return torch.tensor([[table[value] for value in x.flatten().tolist()]])

    assert attend(h, torch.tensor([0]), lambda x: x, keys, 1, False).item() == pytest.approx(
        8 / 4 + 4 * 3 / 4
    )
    assert attend(h, torch.tensor([0]), lambda x: x, keys, 1, True).item() == pytest.approx(8)


def test_other_modules_have_no_known_halves():
    assert halves(nn.Linear(2, 2)) is None
    assert halves(ResidualAttentionBlock(16, 2, is_cross_attention=True)) is None
