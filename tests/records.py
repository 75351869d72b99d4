"""Records of settings for tests of the refusals that records make themselves (`check`), as Python code may call them."""

from functools import partial
from typing import Any

from omegaconf import OmegaConf

from muwa import config


def part(choice: str, *more: str, **changed: Any) -> Any:
    """`muwa.config.part` without its check of types and ranges, which would refuse the setting first."""
    group = choice.partition("=")[0]
    cfg = config.composed(choice, *more).copy()
    for key in changed:
        if OmegaConf.is_missing(cfg[group], key):
            cfg[group][key] = None
    built = config._instantiated(config._plain(cfg, group), group)
    if isinstance(built, partial):
        built = config._with(built, changed)
    return config.with_records(built) if group in config.RECORDS else built
