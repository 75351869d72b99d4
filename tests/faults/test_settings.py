"""Every setting of conf/ with values that it cannot have: refused by its key, in one line, before anything is made."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from setting_sweep import VALUES, Setting, must_be_refused, resolved, settings

from muwa import config

EVERY = settings()
FILES = random.Random(19).sample(
    sorted({setting.file for setting in EVERY}), 5
)  # to compose a file takes longest
SAMPLE = random.Random(19).sample([(one, name) for one in EVERY if one.file in FILES for name in VALUES], 60)


def faults(cases: Sequence[tuple[Setting, str]]) -> tuple[int, list[str]]:
    """(How many of the cases were refused, what was accepted wrongly or refused without key, value or wish)."""
    by_file = defaultdict(list)
    for setting, name in cases:
        by_file[tuple(setting.overrides)].append((setting, name))
    found, refused = [], 0
    for overrides, some in by_file.items():
        cfg = config.composed(*overrides).copy()
        OmegaConf.set_struct(cfg, False)
        for setting, name in some:
            default, value = resolved(cfg, setting.key), VALUES[name]
            changed = cfg.copy()
            try:
                OmegaConf.update(changed, setting.key, value, merge=False)
                config.Parts(changed)
            except OmegaConfBaseException as error:  # Hydra prints it, with the key
                refused += 1
                said = "" if setting.key == error.full_key else f"says {error}"
            except ValueError as error:
                refused += 1
                parts = [setting.name, " want " if ": got" in str(error) else ": "]
                said = (
                    ""
                    if all(part in str(error) for part in parts) and "\n" not in str(error)
                    else f"says {error}"
                )
            else:
                said = "is accepted" if must_be_refused(setting, value, default) else ""
            if said:
                found.append(f"{setting.file}: {setting.key}={name} {said}")
    return refused, found


def test_a_sample_of_all_settings_and_values():
    refused, found = faults(SAMPLE)
    assert not found, "\n".join(found)
    assert refused > 40


@pytest.mark.slow  # three minutes
def test_all_settings_and_values(capsys):
    every = [(setting, name) for setting in EVERY for name in VALUES]
    refused, found = faults(every)
    with capsys.disabled():
        print(f"\n{len(EVERY)} settings, {len(every)} cases, {refused} refused, {len(found)} faults")
    assert not found, "\n".join(found)
    assert len(EVERY) > 600
    assert refused > 7500


@pytest.mark.parametrize(("overrides", "said"), [
    (["task.limits.probe_share=7"], "task.limits.probe_share: got 7, want less than 1"),
    (["task.limits.probe_share=1"], "task.limits.probe_share: got 1, want less than 1"),
    (["dataset.max_broken=-1"], "dataset.max_broken: got -1, want at least 0"),
    (["task.limits.retain_pairs=-5"], "task.limits.retain_pairs: got -5, want at least 0"),
    (["task.limits.retain_pairs=abc"], "task.limits.retain_pairs: got 'abc', want a whole number"),
    (["layer_search=fixed", "layer_search.layer=visual.proj", "layer_search.step=1e30"], "layer_search.step: got 1e+30, want less than"),
    (["layer_search=grid", "layer_search.steps=[1,1e30]", "layer_search.relative_steps=null"], "layer_search.steps.1: got 1e+30, want less"),
    (["task.template=noplaceholder"], "task.template: got 'noplaceholder', want a text with {} in it"),
    (["task.template='{} {x}'"], "task.template: got '{} {x}', want a text with {} in it"),
    (["task.template='{'"], "task.template: got '{', want a text with {} in it"),
    (["task.prompt='{:>99999999999}'"], "task.prompt: got '{:>99999999999}', want"),
    (["task=canvas", "task.prompt='a {class}'"], "task.prompt: got 'a {class}', want a text with {style} and {class}"),
    (["runtime.threads=100000"], "runtime.threads: got 100000, want at most 1024"),
    (["runtime.device=gpu"], "runtime.device: got 'gpu', want cpu, cuda, cuda:1"),
    (["runtime.device='cuda:x'"], "runtime.device: got 'cuda:x', want cpu"),
    (["learning_rate=1e30"], "learning_rate: got 1e+30, want at most 100"),
    (["whitening.damping=0"], "whitening.damping: got 0.* want more than 0"),
    (["model=sd", "model.size=63"], "model.size: got 63, want a multiple of 8"),
    (["model=sd", "model.dtype=fp8"], "model.dtype: got 'fp8', want 'fp32', 'fp16' or 'bf16'"),
    (["model=sd", "eval=[attacks]", "eval.translated.templates.de=Foto"], "eval.translated.templates.de: got 'Foto', want a text with {}"),
    (["eval=[relearning]", "eval.relearning.shots=[1,0]"], "eval.relearning.shots.1: got 0, want at least 1"),
    (["method.seed=-1"], "method.seed: got -1, want at least 0"),
    (["seed=-1"], "seed: got -1, want at least 0"),
    (["method.layer_search=abc"], "method.layer_search: got 'abc', want a part with a _target_"),
    (["model.name=null"], "model.name: got None, want a text"),
    (["dataset.root=''"], "dataset.root: got '', want a text that is not empty"),
    (["task.identity=[]"], "task.identity: got .*, want"),
    (["task.identity=${nowhere}"], "nowhere"),
    (["logger=[wandb]", "logger.wandb.mode=shout"], "logger.wandb.mode: got 'shout', want 'offline'"),
])  # fmt: skip
def test_what_was_accepted_before_is_refused_by_its_key(overrides, said):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        config.Parts(config.composed(*overrides))
    first, _, rest = said.partition(".*")
    assert first in str(caught.value)
    assert rest in str(caught.value)
    assert "\n" not in str(caught.value)
