"""Text files of data sets, in the encodings and with the separators that occur."""

import pytest

from muwa.data.text_files import read_lines, read_table


def is_key(cell):
    return cell.endswith(".jpg")


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-16-le", "utf-32", "cp1252"]
)
def test_encodings_and_line_ends(tmp_path, encoding):
    path = tmp_path / "names.txt"
    path.write_bytes(
        "1.jpg Zoë\r\n\n2.jpg “Bo”\r3.jpg Łódź".replace("Łódź" if encoding == "cp1252" else "", "").encode(
            encoding
        )
    )
    assert read_lines(path)[:3] == ["1.jpg Zoë", "", "2.jpg “Bo”"]


def test_another_encoding_than_utf_8_is_said(tmp_path, caplog):
    path = tmp_path / "names.txt"
    path.write_bytes("Zoë".encode("latin-1"))
    assert read_lines(path) == ["Zoë"]
    said = f"{path} is not UTF-8; read as Windows-1252 (latin-1). Save it as UTF-8 if names look wrong"
    assert caplog.messages == [said]
    path.write_text("Zoë", encoding="utf-8")
    read_lines(path)
    assert caplog.messages == [said]


@pytest.mark.parametrize("content", [b"PK\x03\x04\0\0\x01\0x\0y", b"\xff\xfea\0b", b"ab\0cd efgh ijkl"])
def test_what_is_no_text_is_refused(tmp_path, content):
    (tmp_path / "names.txt").write_bytes(content)
    with pytest.raises(ValueError, match="names.txt: not a text file"):
        read_lines(tmp_path / "names.txt")


@pytest.mark.parametrize(("text", "rows"), [
    ("1.jpg Doe, Jane\n\n2.jpg  Bo\tX\n", [(1, ["1.jpg", "Doe, Jane"]), (3, ["2.jpg", "Bo\tX"])]),
    ("h,n\n1.jpg,\"Doe, Jane\"\n", [(1, ["h", "n"]), (2, ["1.jpg", "Doe, Jane"])]),
    ("1.jpg\tDoe, Jane\t7\n", [(1, ["1.jpg", "Doe, Jane", "7"])]),
    ("1.jpg; \"Bo\n2.jpg\n", [(1, ["1.jpg", "Bo"]), (2, ["2.jpg"])]),
    ("", []),
    ("nothing,here\n", [(1, ["nothing,here"])]),
])  # fmt: skip
def test_separators(tmp_path, text, rows):
    (tmp_path / "table").write_text(text)
    assert read_table(tmp_path / "table", is_key) == rows
