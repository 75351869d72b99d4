"""Ranges of settings, for the annotations of the records and loaders that a config makes.

`muwa.signatures` checks them when a config is composed. NaN and infinity are never accepted.
"""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Gt, Interval

Share = Annotated[float, Interval(ge=0, le=1)]
Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
Count = Annotated[int, Ge(1)]
CountOrZero = Annotated[int, Ge(0)]
Seed = Annotated[int, Interval(ge=0, lt=2**32)]
