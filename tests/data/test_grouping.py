"""Which files of a tar are one sample, worked by hand."""

import pytest

from muwa.data.caption_key import caption_key
from muwa.data.grouping import grouped, split_name
from muwa.data.tars import Member


def group(names, setting=None, bound=1000):
    """The samples of files with these names: (key, images, caption, repeated)."""
    members = [Member(name, 10, name, 10) for name in names.split()]
    return [
        (
            one.key,
            [image.content for image in one.images],
            one.caption and one.caption[1].content,
            one.repeated,
        )
        for one in grouped(members, caption_key(setting), bound)
    ]


def sound(names, setting=None):
    """The same of sound samples, without what is the same in all."""
    found = group(names, setting)
    assert all(len(images) == 1 and caption and not repeated for _, images, caption, repeated in found)
    return [(key, images[0], caption) for key, images, caption, _ in found]


ONE_AND_TWO = [("1", "1.jpg", "1.txt"), ("2", "2.jpg", "2.txt")]


@pytest.mark.parametrize("names", [
    "1.jpg 1.txt 2.jpg 2.txt", "1.txt 1.jpg 1.json 2.json 2.jpg 2.txt", "1.jpg 1.cls 1.txt 2.jpg 2.txt",  # as webdataset
    "1.jpg 2.jpg 1.txt 2.txt", "1.txt 2.txt 1.jpg 2.jpg",  # ordered by kind
    "1.jpg 2.jpg 1.json 2.json 1.txt 2.txt", "1.json 2.json 1.txt 2.txt 1.jpg 2.jpg", "1.jpg 2.jpg 1.txt 2.txt 1.json 2.json",
])  # fmt: skip
def test_files_that_stand_together_or_are_ordered_by_kind_give_the_same_samples(names):
    assert sound(names) == ONE_AND_TWO


@pytest.mark.parametrize(("setting", "captions"), [
    (None, ["1.txt", "2.text"]), ("txt", ["1.txt", None]), ("text", [None, "2.text"]), ("json:alt", ["1.json", "2.json"]),
])  # fmt: skip
def test_the_caption_is_what_the_setting_says_or_the_first_kind_that_is_there(setting, captions):
    found = group("1.jpg 1.txt 1.json 2.jpg 2.json 2.text", setting)
    assert [caption for _, _, caption, _ in sorted(found)] == captions


def test_a_json_is_the_caption_if_no_other_file_is():
    assert sound("1.jpg 1.json 2.json 2.jpg") == [("1", "1.jpg", "1.json"), ("2", "2.jpg", "2.json")]
    assert sound("1.jpg 2.jpg 1.json 2.json") == [("1", "1.jpg", "1.json"), ("2", "2.jpg", "2.json")]


def test_keys_with_dots_are_samples_of_their_own_if_image_and_caption_share_them():
    pairs = [("a.1", "a.1.jpg", "a.1.txt"), ("a.2", "a.2.JPG", "a.2.TXT")]
    assert sound("a.1.jpg a.1.txt a.2.JPG a.2.TXT") == pairs
    assert sound("a.1.jpg a.2.JPG a.1.txt a.2.TXT") == pairs
    assert sound("www.b.c/1.x.jpg www.b.c/1.x.txt") == [("www.b.c/1.x", "www.b.c/1.x.jpg", "www.b.c/1.x.txt")]
    assert sound("x.0.jpg y.0.jpg x.0.txt y.0.txt") == [
        ("x.0", "x.0.jpg", "x.0.txt"), ("y.0", "y.0.jpg", "y.0.txt"),
    ]  # fmt: skip
    assert group("a.1.jpg a.1.txt a.2.jpg")[1] == ("a.2", ["a.2.jpg"], None, None)


def test_other_files_with_dots_belong_to_the_plain_sample():
    """webdataset's way to give a sample several images: 1.seg.png is the file seg.png of sample 1."""
    assert sound("1.jpg 1.txt 1.seg.png 1.seg.json 2.mask.png 2.jpg 2.txt") == ONE_AND_TWO
    assert group("a/b.left.JPG a/b.txt") == [("a/b", [], "a/b.txt", None)]


def test_what_stays_alone_comes_last():
    assert group("1.jpg 2.jpg 2.txt 3.txt") == [
        ("2", ["2.jpg"], "2.txt", None), ("1", ["1.jpg"], None, None), ("3", [], "3.txt", None),
    ]  # fmt: skip


def test_samples_under_one_key_stay_apart():
    assert sound("a.jpg a.txt b.jpg b.txt a.jpg a.txt") == [
        ("a", "a.jpg", "a.txt"), ("b", "b.jpg", "b.txt"), ("a", "a.jpg", "a.txt"),
    ]  # fmt: skip
    assert group("a.jpg a.txt b.jpg a.jpg a.txt b.txt") == [
        ("a", ["a.jpg"], "a.txt", None), ("a", ["a.jpg"], "a.txt", None),
        ("b", ["b.jpg"], None, None), ("b", [], "b.txt", None),
    ]  # fmt: skip  # keys came twice before: the two files of b may be of two samples


def test_repeated_and_several_images_are_said():
    assert group("a.jpg a.txt a.jpg") == [("a", ["a.jpg"], "a.txt", "jpg")]
    assert group("a.jpg a.png a.txt") == [("a", ["a.jpg", "a.png"], "a.txt", None)]
    assert group("a.jpg a.txt a.json a.json") == [("a", ["a.jpg"], "a.txt", None)]


def test_files_of_the_system_are_no_samples():
    assert (
        sound("./._1.jpg 1.jpg ._1.txt 1.txt __meta__.json__ __x__/9.jpg README 2.jpg 2.txt") == ONE_AND_TWO
    )
    assert split_name(".hidden") is None


def test_what_waits_is_bounded():
    names = " ".join([f"{i}.jpg" for i in range(200)])
    with pytest.raises(
        OSError, match=r"more than 1,000 bytes of files wait.*ordered by kind.*tar --sort=name"
    ):
        group(names)
    assert len(sound(" ".join(f"{i}.jpg {i}.txt" for i in range(200)))) == 200


def test_a_tar_that_breaks_off_gives_what_is_complete():
    def broken():
        yield from (Member(name, 1, name) for name in ("1.jpg", "1.txt", "2.jpg", "3.jpg", "3.txt", "4.jpg"))
        raise EOFError("cut")

    found = []
    with pytest.raises(EOFError, match="cut"):
        for one in grouped(broken(), caption_key(None), 1000):
            found.append(one.key)
    assert found == ["1", "3", "2"]  # 4 was not read to its end
