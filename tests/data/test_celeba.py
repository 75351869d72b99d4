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
        FileNotFoundError, match=r"dataset.identities=.*elsewhere.txt: no such file; want rows"
    ):
        read(tmp_path, str(tmp_path / "elsewhere.txt"))


TEXTS = {
    "spaces": "000001.jpg   Ada_Fox\n000002.jpg Bo Hill \n000003.jpg Béa Núñez\n",
    "tabs": "000001.jpg\tAda Fox\n000002.jpg\tBo_Hill\n000003.jpg\tBéa_Núñez\n",
    "commas, a header and quotes": 'image_id,identity_name\n000001.jpg,"Ada Fox"\n000002.jpg,Bo Hill\n"000003.jpg", Béa Núñez\n',
    "semicolons": "image;name\n000001.jpg;Ada Fox\n000002.jpg;Bo Hill\n000003.jpg;Béa Núñez\n",
    "an index and a number": ",image_id,identity,identity_name\n0,000001.jpg,7,Ada Fox\n1,000002.jpg,8,Bo Hill\n2,000003.jpg,9,Béa Núñez\n",
    "names first": "name,image\nAda Fox,000001.jpg\nBo Hill,000002.jpg\nBéa Núñez,000003.jpg\n",
    "folders": "img_align_celeba/000001.jpg Ada_Fox\nimg_align_celeba\\000002.jpg Bo_Hill\n000003.jpg Béa_Núñez\n",
    "a count and a header": "3\nimage_id identity_name\n000001.jpg Ada_Fox\n\n000002.jpg Bo_Hill\n000003.jpg Béa_Núñez",
}


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "latin-1", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]
)
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("kind", TEXTS)
def test_the_identity_file_as_people_write_it(tmp_path, kind, ends, encoding):
    celeba(tmp_path, [(f"00000{i}.jpg", "x") for i in (1, 2, 3)])
    (tmp_path / "list_identity_celeba.txt").write_bytes(TEXTS[kind].replace("\n", ends).encode(encoding))
    found = read(tmp_path)
    assert found.names == ("Ada Fox", "Bo Hill", "Béa Núñez")
    assert [path.name for name in found.names for path in found.files[name]] == [
        "000001.jpg",
        "000002.jpg",
        "000003.jpg",
    ]
    assert not found.broken
    assert not found.numbered


@pytest.mark.parametrize(("images", "identities"), [
    ("img_align_celeba/img_align_celeba", "identity_CelebA.txt"),
    ("celeba/img_align_celeba", "celeba/identity_CelebA.txt"),  # torchvision's root
    ("Img/img_align_celeba", "Anno/identity_CelebA.txt"),  # the authors' drive
    ("CelebA/Img/img_align_celeba_png", "CelebA/Anno/identity_CelebA.txt"),
    ("img_align_celeba/img_align_celeba", "list_identity_celeba.csv"),  # Kaggle's folder, with a list
])  # fmt: skip
def test_the_layouts_in_which_celeba_arrives(tmp_path, images, identities):
    (tmp_path / images).mkdir(parents=True)
    ending = "png" if images.endswith("png") else "jpg"
    for i in (1, 2):
        (tmp_path / images / f"00000{i}.{ending}").write_bytes(tiny.png(i))
    (tmp_path / identities).parent.mkdir(exist_ok=True)
    separator = "," if identities.endswith("csv") else " "
    rows = [f"000001.jpg{separator}Ada Fox", f"000002.jpg{separator}Bo Hill"]
    (tmp_path / identities).write_text("\n".join(rows))
    (tmp_path / identities).with_name("frequent_celebs.txt").write_text("Bo_Hill\n")
    found = read(tmp_path)
    assert found.files["Ada Fox"] == (tmp_path / images / f"000001.{ending}",)
    assert found.frequent == ("Bo Hill",)
    assert not found.broken


def test_the_folder_of_the_images_itself_with_an_identity_file(tmp_path):
    celeba(tmp_path, ROWS)
    found = read(tmp_path / "img_align_celeba", str(tmp_path / "list_identity_celeba.txt"))
    assert found.names == ("Ada Fox", "Bo Hill")


def test_other_endings_on_disk_than_in_the_file(tmp_path):
    celeba(tmp_path, [("000001.JPG", "x"), ("000002.jpeg", "x"), ("000003.webp", "x")])
    (tmp_path / "list_identity_celeba.txt").write_text("000001.jpg A\n000002.jpg B\n000003.png C\n")
    found = read(tmp_path)
    assert [found.files[name][0].name for name in "ABC"] == ["000001.JPG", "000002.jpeg", "000003.webp"]


def test_rows_that_cannot_be_understood_are_counted(tmp_path):
    celeba(tmp_path, [("000001.jpg", "A"), ("000002.jpg", ""), ("000003.tiff", "C"), ("000004.jpeg", "D")])
    found = read(tmp_path)
    assert found.names == ("A", "D")
    assert [(one.where, one.why) for one in found.broken] == [
        ("list_identity_celeba.txt:4", "no name of a person in this row: '000002.jpg'"),
        ("list_identity_celeba.txt:5", "no name of an image in this row: '000003.tiff C'"),
    ]


def test_an_image_of_two_people_is_left_out_and_one_that_is_listed_twice_counts_once(tmp_path):
    rows = [
        ("000001.jpg", "A"),
        ("000002.jpg", "A"),
        ("000002.jpg", "A"),
        ("000003.jpg", "A"),
        ("000003.jpg", "B"),
    ]
    found = read(celeba(tmp_path, rows))
    assert [path.name for path in found.files["A"]] == ["000001.jpg", "000002.jpg"]
    assert [(one.where, one.why) for one in found.broken] == [
        ("000003.jpg", "list_identity_celeba.txt says that it shows A and B")
    ]


def test_images_that_are_left_out_are_said(tmp_path, caplog):
    celeba(tmp_path, ROWS)
    folder = tmp_path / "img_align_celeba"
    for name in (
        "000007.jpg",
        "000008.png",
        "000001.png",
        "000009.tiff",
        "._000001.jpg",
        "Thumbs.db",
        ".DS_Store",
    ):
        (folder / name).write_bytes(tiny.png(1))
    found = read(tmp_path)
    assert sum(map(len, found.files.values())) == 3
    assert caplog.messages == [
        f"{folder}: images left out, in a format that muwa does not read: 1 (000009.tiff)",
        f"{folder}: images left out, as list_identity_celeba.txt does not say whom they show: "
        "2 of 5 (000007.jpg, 000008.png)",
    ]


def test_spellings_of_one_name_are_one_person(tmp_path, caplog):
    composed, decomposed = "Beyonc\u00e9 Knowles", "Beyonce\u0301_Knowles"
    rows = [
        ("000001.jpg", composed),
        ("000002.jpg", decomposed),
        ("000003.jpg", "BEYONCE_KNOWLES"),
        ("000004.jpg", "Bo"),
    ]
    celeba(tmp_path, rows)
    (tmp_path / "frequent_celebs.txt").write_text(f"{decomposed} 3\nbo\n{composed}\n")
    found = read(tmp_path)
    assert found.names == (composed, "Bo")
    assert len(found.files[composed]) == 3
    assert found.frequent == (composed, "Bo")
    (said,) = caplog.messages
    assert said.endswith(f"people spelt in several ways, taken as one each: {composed}")


def test_a_file_with_numbers_is_said_with_what_to_do(tmp_path, caplog):
    celeba(tmp_path, [("000001.jpg", "2880"), ("000002.jpg", "17")], name="identity_CelebA.txt", header=False)
    assert read(tmp_path).numbered
    (said,) = caplog.messages
    assert "identity_CelebA.txt has numbers in place of names, as CelebA is published" in said
    assert "ask CelebA's authors (mmlab.ie.cuhk.edu.hk/projects/CelebA.html)" in said
    assert "dataset.identities=FILE" in said


def test_the_names_of_image_files_may_be_composed_or_not(tmp_path):
    celeba(tmp_path, [("zoe\u0308.jpg", "x")])
    (tmp_path / "list_identity_celeba.txt").write_text("zo\u00eb.jpg Zo\u00eb\n")
    assert len(read(tmp_path).files["Zo\u00eb"]) == 1


def test_kaggles_copy_has_no_identity_file_and_the_message_says_what_to_give(tmp_path):
    (tmp_path / "img_align_celeba" / "img_align_celeba").mkdir(parents=True)
    for name in ("list_attr_celeba.csv", "list_eval_partition.csv"):
        (tmp_path / name).write_text("image_id,Male\n000001.jpg,1\n")
    with pytest.raises(
        FileNotFoundError,
        match=r"dataset.celeba=.*looked for list_identity_celeba.txt or identity_CelebA.txt; there is "
        r"img_align_celeba, list_attr_celeba.csv, list_eval_partition.csv. [\s\S]*dataset.identities=FILE[\s\S]*its "
        "authors send them on request",
    ):
        read(tmp_path)
