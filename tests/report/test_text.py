import jinja2
import pytest

from muwa.report.text import environment, write_text


def test_a_text_is_whole_and_leaves_no_draft(tmp_path):
    write_text(tmp_path / "a" / "b.txt", "é\n")
    write_text(tmp_path / "a" / "b.txt", "ü\n")
    assert (tmp_path / "a" / "b.txt").read_text() == "ü\n"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.txt"]


def test_templates_escape_and_refuse_what_is_not_given():
    assert environment().from_string("{{ a }}").render(a="<b>") == "&lt;b&gt;"
    with pytest.raises(jinja2.UndefinedError, match="'a' is undefined"):
        environment().from_string("{{ a }}").render()
