import io
import unicodedata

import pytest
import tiny
from PIL import Image

from muwa.data.samples import check_broken, decode, find_name, fold, match_names
from muwa.types.data import Broken


def encoded(kind, mode="RGB", size=(8, 6)):
    buffer = io.BytesIO()
    Image.new(mode, size, 100).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize(("text", "folded"), [
    ("Kael_LINDQVAR", "kael lindqvar"), ("  a\t b\n", "a b"), ("(Kael: Lindqvar)!", "kael lindqvar"), ("STRASSE ß", "strasse ss"),
    ("O'Hara-Smith", "o hara smith"), ("__", ""), ("Ünal", "unal"),
])  # fmt: skip
def test_folding(text, folded):
    assert fold(text) == folded


@pytest.mark.parametrize(("caption", "matches"), [
    ("a photo of Ada Fox.", True), ("ADA_FOX at home", True), ("ada  fox", True), ("Ada Foxworth", False), ("Granada Fox", False),
    ("Ada and the Fox", False), ("Fox, Ada", False), ("(Ada-Fox)", True),
])  # fmt: skip
def test_names_match_as_whole_words(caption, matches):
    assert bool(match_names(caption, ["Ada Fox"])) is matches


def test_all_names_of_a_caption_are_found_and_empty_ones_never():
    assert match_names("Ada Fox with Bo Hill", ["Bo Hill", "Ada Fox", "Cy Reed", "", "_"]) == [
        "Bo Hill",
        "Ada Fox",
    ]


def test_an_empty_caption_has_no_name():
    assert match_names("", ["", "_", "Ada Fox"]) == []


def test_a_name_is_found_however_it_is_typed():
    assert find_name("ada_fox", tiny.NAMES, "here") == "Ada Fox"
    assert find_name("ADA  FOX", tiny.NAMES, "here") == "Ada Fox"


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(
        ValueError, match="Unknown name 'Ada_Foxx': not among the 8 names of the list. Nearest: Ada_Fox"
    ):
        find_name("Ada_Foxx", tiny.NAMES, "the list")
    with pytest.raises(ValueError, match="Nearest: Flo_Wren"):
        find_name("Wren", tiny.NAMES, "the list")
    with pytest.raises(ValueError, match="Nearest: hal_stone"):  # not alike, but a word is the same
        find_name("the famous person stone", [*tiny.NAMES, "hal stone"], "the list")
    with pytest.raises(ValueError, match="Nearest: none that is similar"):
        find_name("Zzzzyx", tiny.NAMES, "the list")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_images_become_rgb(kind, tmp_path):
    (tmp_path / "image").write_bytes(encoded(kind))
    for image in (encoded(kind), tmp_path / "image"):
        assert decode(image).mode == "RGB"
        assert decode(image).size == (8, 6)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1"])
def test_other_modes_become_rgb(mode):
    assert decode(encoded("PNG", mode)).mode == "RGB"


def test_a_palette_with_transparency_becomes_rgb_without_a_warning():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 200, 10, 20])
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=bytes([0, 128]))
    assert decode(buffer.getvalue()).getpixel((0, 0)) == (200, 10, 20)


def test_exif_rotation_is_left_alone():
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by a quarter
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6)).save(buffer, "JPEG", exif=exif)
    assert decode(buffer.getvalue()).size == (8, 6)


@pytest.mark.parametrize("size", [(12, 12), (20, 20)])
def test_an_image_of_too_many_pixels_is_refused(monkeypatch, size):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=f"Image size \\({size[0] * size[1]} pixels\\) exceeds limit"):
        decode(encoded("PNG", size=size))


@pytest.mark.parametrize(("raw", "why"), [
    (b"", "empty file"), (b"hello", "cannot identify image file"), (encoded("JPEG", size=(64, 64))[:300], "cannot be decoded"),
    (encoded("PNG", size=(64, 64))[:80], "cannot be decoded"),
])  # fmt: skip
def test_what_is_not_a_complete_image_says_why(raw, why):
    with pytest.raises(ValueError, match=why):
        decode(raw)


def test_the_share_of_broken_samples_is_exact_and_the_list_is_shown():
    broken = [Broken(f"00000.tar:{i}", "no caption") for i in range(12)]
    check_broken(broken[:1], 100, 0.01, "x")
    check_broken([], 0, 0.0, "x")
    with pytest.raises(
        ValueError, match=r"x: 2 of 100 samples are broken \(2.0%\), more than dataset.max_broken=0.01 allows"
    ):
        check_broken(broken[:2], 100, 0.01, "x")
    with pytest.raises(ValueError, match=r"00000.tar:9: no caption\n  and 2 more"):
        check_broken(broken, 12, 0.5, "x")


@pytest.mark.parametrize(("count", "share"), [(1, 0.01), (7, 0.07), (29, 0.29), (100, 1.0)])
def test_a_share_exactly_at_the_limit_is_accepted_and_one_more_is_not(count, share):
    broken = [Broken(str(i), "no caption") for i in range(count + 1)]
    check_broken(broken[:count], 100, share, "x")
    with pytest.raises(ValueError, match=f"x: {count + 1} of 100 samples are broken"):
        check_broken(broken, 100, share, "x")


def test_ten_are_listed_in_full_and_no_more_are_announced():
    broken = [Broken(f"a.tar:{i}", "empty file") for i in range(10)]
    with pytest.raises(ValueError, match=r"\n  a.tar:9: empty file$"):
        check_broken(broken, 10, 0.0, "x")


def test_composed_and_decomposed_letters_are_the_same_name():
    caption = unicodedata.normalize("NFD", "a photo of Zoë Quill")
    assert match_names(caption, [unicodedata.normalize("NFC", "Zoë Quill")])


def test_vowel_signs_belong_to_their_words_and_invisible_signs_do_not():
    assert fold("\u0930\u093e\u092e") != fold("\u0930\u0942\u092e")  # Ram, room
    assert fold("Kael\u00ad Lind\u200bqvar") == "kael lindqvar"
    assert (fold("\u01fe"), fold("\u01fd")) == ("o", "ae")
