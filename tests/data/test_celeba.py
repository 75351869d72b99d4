import pytest
import tiny

from muwa.data.celeba import read_celeba


def celeba(
    folder, rows, *, name="list_identity_celeba.txt", header=True, images="img_align_celeba", missing=()
):
    """A CelebA folder: rows are (image, person)."""
    (folder / images).mkdir(parents=True)
    for image, _ in rows:
        if image not in missing:
            (folder / images / image).write_bytes(tiny.png(1))
    lines = [str(len(rows)), "image_id identity_name"] if header else []
    (folder / name).write_text("\n".join(lines + [f"{image} {who}" for image, who in rows]) + "\n")
    return folder


ROWS = [("000002.jpg", "Ada_Fox"), ("000001.jpg", "Ada_Fox"), ("000003.jpg", "Bo_Hill")]


def read(folder, identities=None, frequent=None):
    return read_celeba(folder, identities=identities, frequent=frequent)


def test_people_and_their_images_sorted_with_spaces(tmp_path):
    found = read(celeba(tmp_path, ROWS))
    assert found.names == ("Ada Fox", "Bo Hill")
    assert [path.name for path in found.files["Ada Fox"]] == ["000001.jpg", "000002.jpg"]
    assert not found.broken


def test_the_numbered_identity_file_and_the_twice_nested_folder(tmp_path):
    rows = [("000001.jpg", "2880"), ("000002.jpg", "17")]
    found = read(
        celeba(
            tmp_path,
            rows,
            name="identity_CelebA.txt",
            header=False,
            images="img_align_celeba/img_align_celeba",
        )
    )
    assert found.names == ("17", "2880")
    assert found.files["17"][0].is_file()


def test_files_elsewhere_can_be_given(tmp_path):
    celeba(tmp_path / "a", ROWS)
    (tmp_path / "a" / "list_identity_celeba.txt").rename(tmp_path / "who.txt")
    (tmp_path / "often.txt").write_text("Bo_Hill\n")
    found = read(tmp_path / "a", str(tmp_path / "who.txt"), str(tmp_path / "often.txt"))
    assert found.frequent == ("Bo Hill",)
    with pytest.raises(
        FileNotFoundError, match=r"dataset.frequent=nowhere.txt: no such file; want one name per line"
    ):
        read(tmp_path / "a", str(tmp_path / "who.txt"), "nowhere.txt")


@pytest.mark.parametrize(
    "text",
    ["Bo_Hill\nAda_Fox\n", "Bo Hill 30\nAda Fox 20\n", "Bo_Hill,30\n\nAda_Fox,20\n", "Bo_Hill\t30\nAda_Fox"],
)
def test_the_list_of_frequent_people_may_hold_counts(tmp_path, text):
    celeba(tmp_path, ROWS)
    (tmp_path / "frequent_celebs.txt").write_text(text)
    assert read(tmp_path).frequent == ("Bo Hill", "Ada Fox")


def test_without_a_list_the_hundred_with_most_images(tmp_path):
    rows = [(f"{i:06d}.jpg", f"P_{i:03d}") for i in range(120)] + [
        (f"{1000 + i:06d}.jpg", f"P_{i:03d}") for i in range(110, 120)
    ]
    found = read(celeba(tmp_path, rows))
    assert len(found.frequent) == 100
    assert {f"P {i:03d}" for i in range(110, 120)} <= set(found.frequent)
    assert "P 095" not in found.frequent
    assert "P 089" in found.frequent


def test_an_image_that_is_listed_but_not_there_is_broken(tmp_path):
    found = read(celeba(tmp_path, ROWS, missing=["000003.jpg"]))
    assert found.files["Bo Hill"] == ()
    assert [(one.where, one.why) for one in found.broken] == [
        ("000003.jpg", "listed in list_identity_celeba.txt, not in img_align_celeba/")
    ]


def test_what_is_missing_is_named_with_the_layout(tmp_path):
    with pytest.raises(
        FileNotFoundError,
        match=r"there is no such folder. Expected layout:\n  .*/none/\n    img_align_celeba/000001.jpg",
    ):
        read(tmp_path / "none")
    (tmp_path / "readme.md").touch()
    with pytest.raises(
        FileNotFoundError,
        match=r"looked for list_identity_celeba.txt or identity_CelebA.txt; there is readme.md",
    ):
        read(tmp_path)
    (tmp_path / "list_identity_celeba.txt").write_text("000001.jpg Ada_Fox\n")
    with pytest.raises(FileNotFoundError, match="looked for img_align_celeba/"):
        read(tmp_path)


def test_an_identity_file_without_rows_and_an_unknown_frequent_name(tmp_path):
    celeba(tmp_path / "a", [])
    with pytest.raises(ValueError, match="no rows such as `000001.jpg Jane_Doe` in it"):
        read(tmp_path / "a")
    celeba(tmp_path / "b", ROWS)
    (tmp_path / "b" / "frequent_celebs.txt").write_text("Ada_Fox\nCy_Reed\n")
    with pytest.raises(ValueError, match=r"'Cy Reed' has no image in the identity file \(1 such names\)"):
        read(tmp_path / "b")


def test_numbered_people_may_have_counts_in_the_list_of_frequent_ones(tmp_path):
    celeba(tmp_path, [("000001.jpg", "2880"), ("000002.jpg", "17")], name="identity_CelebA.txt", header=False)
    (tmp_path / "frequent_celebs.txt").write_text("2880\n17 30\n2880\n")
    assert read(tmp_path).frequent == ("2880", "17")


def test_a_name_that_ends_in_a_number_may_be_frequent(tmp_path):
    celeba(tmp_path, [("000001.jpg", "Person_7"), ("000002.jpg", "Person_8")])
    (tmp_path / "frequent_celebs.txt").write_text("Person_7\nPerson_8 30\n")
    assert read(tmp_path).frequent == ("Person 7", "Person 8")


def test_of_two_identity_files_the_one_with_names_is_read(tmp_path):
    celeba(tmp_path, ROWS)
    (tmp_path / "identity_CelebA.txt").write_text("000001.jpg 2880\n")
    assert read(tmp_path).names == ("Ada Fox", "Bo Hill")


def test_all_are_frequent_when_there_are_fewer_than_a_hundred(tmp_path):
    rows = [("000001.jpg", "Cy_Reed"), ("000002.png", "Ada_Fox"), ("000003.JPG", "Cy_Reed")]
    found = read(celeba(tmp_path, rows))
    assert found.frequent == ("Ada Fox", "Cy Reed")
    assert len(found.files["Cy Reed"]) == 2


def test_a_given_identity_file_that_is_not_there_is_named(tmp_path):
    celeba(tmp_path, ROWS)
    with pytest.raises(
        FileNotFoundError, match=r"looked for elsewhere.txt; there is img_align_celeba, list_identity"
    ):
        read(tmp_path, str(tmp_path / "elsewhere.txt"))
