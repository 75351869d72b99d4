import hashlib

import pytest
import torch

from muwa.cache.tensor_table import rows_of


def digests(items):
    return [hashlib.sha256(item.encode()).hexdigest() for item in items]


class Table:
    """A table of words. A row is [length, code of the first letter]; `computed` notes each computation."""

    def __init__(self, folder):
        self.folder, self.computed = folder, []

    def __call__(self, items):
        def compute(indices):
            self.computed.append([items[i] for i in indices])
            return torch.tensor([[len(items[i]), ord(items[i][0])] for i in indices])

        return rows_of(self.folder, digests(items), compute)


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
    with pytest.warns(UserWarning, match="is damaged"):
        assert table(["ab", "c"])[0].tolist() == [[2, 97], [1, 99]]
    assert table(["ab", "c"])[1] == 0


def test_a_draft_is_not_read(tmp_path):
    table = Table(tmp_path)
    table(["ab"])
    path = next(tmp_path.glob("*.safetensors"))
    path.rename(path.with_suffix(".draft"))
    assert table(["ab"])[1] == 1
