import copy

import pytest
import tiny_sd
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from muwa.models.diffusion.denoiser import Conditions, Denoiser, check_denoiser, cross_attention
from muwa.models.diffusion.model import Diffusion, Sampling

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # of the tiny pipeline's scheduler


@pytest.fixture(scope="module")
def model():
    return tiny_sd.diffusion()


def scheduled(model, scheduler):
    """The same model, its pipeline with another scheduler."""
    pipeline = copy.copy(model.pipeline)
    pipeline.scheduler = scheduler
    return Diffusion(pipeline, {}, model.sampling, source="tiny")


def xl():
    """A random Stable Diffusion XL: two text encoders, a UNet that is conditioned on the image's size."""
    one = tiny_sd.pipeline()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        second = CLIPTextModelWithProjection(
            CLIPTextConfig(
                vocab_size=one.text_encoder.config.vocab_size,
                hidden_size=16,
                intermediate_size=16,
                projection_dim=12,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=32,
                bos_token_id=one.tokenizer.bos_token_id,
                eos_token_id=one.tokenizer.eos_token_id,
                pad_token_id=one.tokenizer.pad_token_id,
            )
        ).eval()
        unet = UNet2DConditionModel(
            sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, attention_head_dim=2,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=144, addition_embed_type="text_time", addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=12 + 6 * 4,
        )  # fmt: skip
    made = StableDiffusionXLPipeline(
        vae=one.vae, text_encoder=one.text_encoder, text_encoder_2=second, tokenizer=one.tokenizer, tokenizer_2=one.tokenizer,
        unet=unet, scheduler=DDIMScheduler(clip_sample=False, steps_offset=1), add_watermarker=False,
    )  # fmt: skip
    return Diffusion(made, {}, Sampling(3, 2.0), source="tiny XL")


def whole(model, text, seed):
    """Latents that the pipeline generates."""
    pipeline = model.pipeline
    noise = torch.randn(1, *Denoiser(model).shape, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return pipeline(
            text, latents=noise, num_inference_steps=3, guidance_scale=2.0, output_type="latent"
        ).images


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "xl"])
def test_a_whole_sample_is_the_pipelines(model, kind):
    one = xl() if kind == "xl" else scheduled(
        model, DDIMScheduler(prediction_type=kind, clip_sample=False, steps_offset=1)
    )  # fmt: skip
    own = Denoiser(one)
    given, empty = own.conditions(["a photo of Ada"]), own.conditions([""])
    noise = own.noise(1, torch.Generator().manual_seed(5))
    got, t = own.sample(noise, given, empty, steps=3, guidance=2.0)
    torch.testing.assert_close(got, whole(one, "a photo of Ada", 5), rtol=1e-4, atol=1e-4)
    assert t == 0


def test_a_sample_stops_where_it_is_told_at_that_steps_timestep(model):
    own = Denoiser(model)
    given, empty = own.conditions(["Ada"]), own.conditions([""])
    noise = own.noise(1, torch.Generator().manual_seed(5))
    x, t = own.sample(noise, given, empty, steps=4, guidance=2.0, stop=0)
    assert torch.equal(x, noise)
    own.scheduler.set_timesteps(4)
    assert t == own.scheduler.timesteps[0]
    x, t = own.sample(noise, given, empty, steps=4, guidance=1, stop=1)
    out = own(noise, own.scheduler.timesteps[0], given)
    alpha, before = (own.scheduler.alphas_cumprod[int(i)] for i in own.scheduler.timesteps[:2])
    clean = (noise - (1 - alpha).sqrt() * out) / alpha.sqrt()
    torch.testing.assert_close(x, before.sqrt() * clean + (1 - before).sqrt() * out, rtol=1e-4, atol=1e-4)
    assert t == own.scheduler.timesteps[1]


def test_replaced_weights_count_for_one_call_only_even_on_error(model):
    own = Denoiser(model)
    before = {name: weight.clone() for name, weight in model.weights("unet").items()}
    x, given = own.noise(1, torch.Generator().manual_seed(0)), own.conditions(["Ada"])
    plain = own(x, torch.tensor(10), given)
    other = {"conv_out.bias": own.weights["conv_out.bias"] + 1}
    torch.testing.assert_close(own(x, torch.tensor(10), given, other), plain + 1)
    with pytest.raises(RuntimeError):
        own(x[:, :2], torch.tensor(10), given, other)
    assert torch.equal(own(x, torch.tensor(10), given), plain)
    assert all(torch.equal(weight, before[name]) for name, weight in model.weights("unet").items())


def test_an_edited_model_is_seen_edited(model):
    bias = model.weights("unet")["conv_out.bias"] + 2
    edited = Denoiser(model.with_weights({"unet/conv_out.bias": bias}))
    x, given = edited.noise(1, torch.Generator().manual_seed(0)), edited.conditions(["Ada"])
    torch.testing.assert_close(
        edited(x, torch.tensor(10), given), Denoiser(model)(x, torch.tensor(10), given) + 2
    )


def test_half_precision_is_computed_in_fp32():
    half = tiny_sd.diffusion(dtype=torch.float16)
    own = Denoiser(half)
    assert {w.dtype for w in own.weights.values()} == {torch.float32}
    out = own(
        own.noise(2, torch.Generator().manual_seed(0)), torch.tensor([3, 7]), own.conditions(["Ada", ""])
    )
    assert out.dtype == torch.float32
    assert next(half.pipeline.unet.parameters()).dtype == torch.float16


def test_xl_is_conditioned_on_zeros_for_no_prompt_and_on_the_pooled_text_for_one():
    own = Denoiser(xl())
    both = own.conditions(["", "Ada", "a photo of Ada"])
    assert both.hidden.shape == (3, 32, 144)
    assert both.pooled.shape == (3, 12)
    assert not both.hidden[0].any()
    assert not both.pooled[0].any()
    assert both.pooled[1].any()
    again = both.select([2, 2, 0])
    assert torch.equal(again.pooled, both.pooled[[2, 2, 0]])
    assert len(again.join(both)) == 6


def test_conditions_are_what_the_pipeline_embeds(model):
    both = Denoiser(model).conditions(["Ada", ""])
    torch.testing.assert_close(both.hidden, model.embed(["Ada", ""]))
    assert both.pooled is None
    assert Conditions(both.hidden).select([1]).hidden.shape == (1, 32, 128)


def test_the_truth_is_the_noise_or_v(model):
    x, noise, t = torch.ones(1, 4, 8, 8), 2 * torch.ones(1, 4, 8, 8), torch.tensor([500])
    assert torch.equal(Denoiser(model).truth(x, noise, t), noise)
    v = Denoiser(
        scheduled(model, DDIMScheduler(prediction_type="v_prediction", steps_offset=1, clip_sample=False))
    )
    alpha = v.scheduler.alphas_cumprod[500]
    torch.testing.assert_close(v.truth(x, noise, t), alpha.sqrt() * noise - (1 - alpha).sqrt() * x)


def test_other_samplers_noise_schedule_is_taken_and_another_prediction_refused(model):
    euler = EulerDiscreteScheduler(
        beta_start=0.001, beta_end=0.01, beta_schedule="scaled_linear", steps_offset=1
    )
    own = Denoiser(scheduled(model, euler))
    torch.testing.assert_close(own.scheduler.alphas_cumprod, euler.alphas_cumprod)
    assert not own.scheduler.config.clip_sample
    with pytest.raises(ValueError, match="got prediction_type='sample' .*want epsilon or v_prediction"):
        Denoiser(scheduled(model, DDIMScheduler(prediction_type="sample", steps_offset=1, clip_sample=False)))
    check_denoiser(scheduled(model, euler))


def test_cross_attention_is_keys_and_values_of_attn2(model):
    names = cross_attention(model)
    assert len(names) == 14
    assert all(model.weights("unet")[name].shape[1] == 128 for name in names)
