import pytest

from muwa.report import figures
from muwa.report.drawn import draw


def test_a_figure_is_a_file_and_an_element(tmp_path):
    drawn = draw(lambda: figures.blank(2, 2)[0], tmp_path / "f.png", "seen", whole=False)
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")
    assert 'aria-label="seen"' in drawn.svg
    assert drawn.title == ""


def test_a_figure_that_fails_costs_a_warning_and_not_the_page(tmp_path, caplog):
    def broken():
        raise RuntimeError("out of ink")

    assert draw(broken, tmp_path / "f.png", "", whole=False) is None
    assert "the figure f.png could not be drawn: RuntimeError: out of ink" in caplog.text


@pytest.mark.filterwarnings("ignore:Glyph:UserWarning")
def test_a_name_that_xml_cannot_hold_costs_only_the_figure_on_the_page(tmp_path, caplog):
    def odd():
        figure, axes = figures.blank(2, 2)
        axes[0, 0].set_title("a\x01b")
        return figure

    assert draw(odd, tmp_path / "f.png", "", whole=False) is None
    assert (tmp_path / "f.png").is_file()
    assert "the figure f.png is not on the page: ParseError" in caplog.text
