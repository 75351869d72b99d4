import pytest

from muwa.runtime.devices import check_device


def test_a_device_that_torch_cannot_use_is_refused():
    with pytest.raises(
        ValueError, match=r"runtime.device=cuda:99: not usable here \(.*; there is cpu, \d+ CUDA devices"
    ):
        check_device("cuda:99")
