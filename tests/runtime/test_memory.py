import sys

import numpy as np
import pytest

from muwa.runtime.memory import peak_memory, reset_peak

BIG = 200_000_000


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can forget a peak")
def test_a_peak_is_of_what_came_after_the_reset():
    before = peak_memory("cpu")
    block = np.ones(BIG, np.uint8)
    high = peak_memory("cpu")
    assert high >= block.nbytes
    del block
    reset_peak("cpu")
    assert peak_memory("cpu") <= high - 0.9 * BIG
    assert before > 10_000_000
    block = np.ones(2 * BIG, np.uint8)
    assert peak_memory("cpu") >= block.nbytes
