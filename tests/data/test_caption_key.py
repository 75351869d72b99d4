"""Where captions stand, by the setting."""

import pytest
from data import datasets

from muwa.data.caption_key import CaptionKey, caption_key


def test_settings_by_hand():
    assert caption_key(None) == CaptionKey(("txt", "caption", "text"), "caption")
    assert caption_key("TXT") == caption_key(".txt") == CaptionKey(("txt",), None)
    assert caption_key("json:Alt") == CaptionKey((), "Alt")
    assert caption_key("json:alt").strong == ("json",)
    assert caption_key("json:alt").wanted == '"alt" in <key>.json'


@pytest.mark.parametrize("setting", ["jpg", "json", "json:", "txt:caption", "a.txt", "a/txt"])
def test_what_is_no_place_of_captions_is_refused_before_anything_is_read(setting):
    with pytest.raises(ValueError, match="dataset.caption_key: got .*, want an ending"):
        caption_key(setting)
    with pytest.raises(ValueError, match="dataset.caption_key: got .*, want an ending"):
        datasets.dataset(caption_key=setting)
