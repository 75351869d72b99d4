import hashlib

import pytest
import torch
from noticed import noticed

from muwa.cache.tensor_table import rows_of


def digests(items):
    return [hashlib.sha256(item.encode()).hexdigest() for item in items]


class Table:
    """A table of words. A row is [length, code of the first letter]; `computed` notes each computation."""

    def __init__(self, folder, *, writable=True):
        self.folder, self.computed, self.writable = folder, [], writable

    def __call__(self, items):
        def compute(indices):
            self.computed.append([items[i] for i in indices])
            return torch.tensor([[len(items[i]), ord(items[i][0])] for i in indices])

        return rows_of(self.folder, digests(items), compute, writable=self.writable)


def test_each_item_is_computed_once_in_whichever_request_it_comes(tmp_path):
    table = Table(tmp_path)
    assert table(["ab", "c"])[0].tolist() == [[2, 97], [1, 99]]
    rows, computed = table(["dd", "c", "ab", "dd"])
    assert rows.tolist() == [[2, 100], [1, 99], [2, 97], [2, 100]]
    assert computed == 1
    assert table(["c"])[1] == 0
    assert [sorted(items) for items in table.computed] == [["ab", "c"], ["dd"]]


def test_a_damaged_file_is_reported_and_its_rows_are_computed_again(tmp_path):
    table = Table(tmp_path)
    table(["ab"])
    next(tmp_path.glob("*.safetensors")).write_bytes(b"short")
    with noticed("is damaged"):
        assert table(["ab", "c"])[0].tolist() == [[2, 97], [1, 99]]
    assert table(["ab", "c"])[1] == 0


def test_a_draft_is_not_read(tmp_path):
    table = Table(tmp_path)
    table(["ab"])
    path = next(tmp_path.glob("*.safetensors"))
    path.rename(path.with_suffix(".draft"))
    assert table(["ab"])[1] == 1


@pytest.mark.parametrize("place", [-1, -70])
def test_one_changed_bit_is_reported_and_its_rows_are_computed_again(tmp_path, place):
    table = Table(tmp_path)
    table(["ab", "c"])
    (path,) = tmp_path.glob("*.safetensors")
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1
    path.write_bytes(raw)
    with noticed("is damaged .its (rows|digests) are not those that were written.; it is computed again"):
        assert table(["c", "ab"])[0].tolist() == [[1, 99], [2, 97]]
    assert not path.exists()
    assert table(["c", "ab"])[1] == 0


def test_a_table_that_cannot_be_written_stays_as_it_is(tmp_path):
    Table(tmp_path)(["ab"])
    (path,) = tmp_path.glob("*.safetensors")
    path.write_bytes(b"short")
    with noticed("is damaged"):
        rows, computed = Table(tmp_path, writable=False)(["ab", "c"])
    assert (rows.tolist(), computed) == ([[2, 97], [1, 99]], 2)
    assert [one.read_bytes() for one in tmp_path.iterdir()] == [b"short"]
