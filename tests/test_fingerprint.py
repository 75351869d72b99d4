"""Content fingerprints: worked out by hand with hashlib."""

import functools
import hashlib
from dataclasses import dataclass

import pytest
import torch

from muwa.fingerprint import Content, digest, fingerprint, read_image


@dataclass(frozen=True)
class Step:
    layer: str
    size: float


@dataclass(frozen=True)
class Move:
    layer: str
    size: float


class Weights(Content):
    @property
    def fingerprint(self):
        return "of the weights"


def double(x, times=2):
    return times * x


def by_hand(*parts):
    """SHA-256 of parts, each with its length in 8 bytes before it, the lowest first."""
    raw = b"".join(bytes([len(part), 0, 0, 0, 0, 0, 0, 0]) + part for part in parts)
    return hashlib.sha256(raw).hexdigest()


def test_a_digest_is_the_sha256_of_parts_with_their_lengths():
    assert digest(["ab", b"c"]) == by_hand(b"ab", b"c")
    assert digest(["ab", "c"]) != digest(["a", "bc"])
    assert digest([]) == hashlib.sha256().hexdigest()


def test_plain_values_enter_with_their_type():
    assert fingerprint("1") == by_hand(b"str", b"'1'")
    assert fingerprint(1) == by_hand(b"int", b"1")
    assert fingerprint(1.0) == by_hand(b"float", b"1.0")
    assert fingerprint(None) == by_hand(b"NoneType", b"None")
    assert fingerprint(b"1") == by_hand(b"bytes", b"1")
    assert len({fingerprint(x) for x in (1, 1.0, True, "1", b"1", None)}) == 6


def test_the_order_counts_in_sequences_and_not_in_mappings():
    assert fingerprint([1, 2]) == fingerprint((1, 2)) != fingerprint([2, 1])
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1}) != fingerprint({"a": 2, "b": 1})


def test_a_dataclass_is_its_name_and_its_fields():
    assert fingerprint(Step("proj", 0.1)) == fingerprint(Step("proj", 0.1))
    assert len({fingerprint(x) for x in (Step("proj", 0.1), Step("proj", 0.2), Move("proj", 0.1))}) == 3


def test_a_tensor_is_its_dtype_shape_and_bytes():
    raw = b"\x00\x00\x80\x3f\x00\x00\x00\xc0"  # 1 and -2 in fp32, little-endian
    assert fingerprint(torch.tensor([1.0, -2.0])) == by_hand(b"tensor", b"torch.float32", b"(2,)", raw)
    assert fingerprint(torch.zeros(2, 3).T) == fingerprint(torch.zeros(3, 2))


def test_a_function_is_its_name_and_a_partial_its_arguments_too():
    module = double.__module__.encode()
    assert fingerprint(double) == by_hand(b"function", module, b"double")
    assert fingerprint(functools.partial(double, times=3)) != fingerprint(functools.partial(double, times=4))
    with pytest.raises(TypeError, match="<lambda>: a lambda or inner function has no name to go by"):
        fingerprint(lambda x: x)


def test_an_object_with_a_fingerprint_gives_that_and_any_other_is_refused():
    assert fingerprint(Weights()) == "of the weights"
    with pytest.raises(TypeError, match="cannot fingerprint set: subclass muwa.fingerprint.Content"):
        fingerprint({1, 2})
    with pytest.raises(TypeError, match="cannot fingerprint object"):
        fingerprint([object()])


def test_an_image_is_read_from_bytes_and_from_a_file(tmp_path):
    (tmp_path / "image.png").write_bytes(b"encoded")
    assert read_image(tmp_path / "image.png") == read_image(b"encoded") == b"encoded"
