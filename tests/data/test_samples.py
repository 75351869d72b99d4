import io
import os
import struct
import unicodedata
import zlib
from pathlib import Path

import pytest
import tiny
from PIL import Image

from muwa.data import samples
from muwa.data.samples import check_broken, decode, find_name, find_names, fold, match_names, one_spelling
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


def test_an_image_of_too_many_pixels_is_refused(monkeypatch):
    monkeypatch.setattr(samples, "PIXELS", 100)
    assert decode(encoded("PNG", size=(10, 10))).size == (10, 10)
    with pytest.raises(ValueError, match="^more than 100 pixels$"):
        decode(encoded("PNG", size=(101, 1)))


@pytest.mark.parametrize("side", [9000, 20000])  # below and above the size from which Pillow only warns
def test_a_small_file_of_a_huge_image_is_refused_before_it_is_decoded(side, monkeypatch):
    rows = zlib.compress(bytes(side // 8 + 1) * side, 9)  # one bit a pixel: a bomb of some kilobytes
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    bomb += chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    assert len(bomb) < 100_000
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("it was decoded"))
    with pytest.raises(ValueError, match="^more than 67,108,864 pixels$"):
        decode(bomb)


def chunk(kind, content):
    """A part of a PNG file."""
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


@pytest.mark.parametrize("kind", ["EPS", "PPM", "TIFF", "ICO", "PCX", "TGA"])
def test_other_formats_are_refused_whatever_the_file_is_called(kind, tmp_path, monkeypatch):
    monkeypatch.setattr("subprocess.check_call", lambda *_, **__: pytest.fail("Ghostscript was started"))
    path = tmp_path / "image.jpg"
    path.write_bytes(encoded(kind))
    with pytest.raises(
        ValueError, match="^cannot identify image file as JPEG, PNG, WEBP, GIF or BMP$"
    ) as raised:
        decode(path)
    assert str(tmp_path) not in str(raised.value)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "MPO"])
def test_the_bytes_decide_the_format(kind, tmp_path):
    path = tmp_path / "image.jpg"
    path.write_bytes(encoded(kind))
    assert decode(path).size == (8, 6)


def test_muwa_opens_images_in_one_place_only():
    package = Path(samples.__file__).parents[1]
    opening = [path for path in package.rglob("*.py") if "Image.open(" in path.read_text(encoding="utf-8")]
    assert opening == [package / "data" / "samples.py"]


def test_a_pipe_is_no_image_and_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "image.jpg")
    with pytest.raises(OSError, match="not a regular file: .*image.jpg"):
        decode(tmp_path / "image.jpg")


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


def test_numbers_are_names_and_other_values_are_refused():
    assert find_names(2880, ["2880", "17"], "here") == ["2880"]
    assert find_names([17, "2880", 17], ["2880", "17"], "here") == ["17", "2880"]
    for value in (True, 0.5, None, ["Ada", False], [[1]]):
        with pytest.raises(ValueError, match=r"as a name to forget, want text. Quote a name that looks like"):
            find_names(value, ["Ada"], "here")
    for value in ([], "", ["Ada", ""]):
        with pytest.raises(ValueError, match="no name to forget was given"):
            find_names(value, ["Ada"], "here")


def test_the_spelling_that_occurs_most_often_is_kept():
    composed, decomposed = "Ren\u00e9e", "Rene\u0301e"
    assert one_spelling([decomposed, decomposed, "RENEE"]) == {decomposed: composed, "RENEE": composed}
    assert one_spelling(["b b", "B_B", "a"]) == {"b b": "B_B", "B_B": "B_B", "a": "a"}
    assert one_spelling(["?", "!"]) == {"?": "?", "!": "!"}  # nothing is left of them


def test_a_few_names_are_all_listed_where_none_is_similar():
    with pytest.raises(ValueError, match="Nearest: none that is similar; all: Mosaic, Old_Paper. Type names"):
        find_name("zzz", ["Mosaic", "Old Paper"], "styles")
