from xml.etree import ElementTree

from matplotlib.colors import to_hex

from muwa.report import figures
from muwa.report.svg import COLOURS, inline


def drawn(name="f", alt="what is seen", whole=False):
    figure, axes = figures.blank(4, 3)
    axis = axes[0, 0]
    dots = axis.scatter([1, 2, 3], [1, 4, 2], c=figures.BLUE)
    figures.hover(dots, ["a <b> & c", "middle", 'last "one"'])
    (bar,) = axis.barh(0, 2, color=figures.RED)
    figures.hover(bar, ["a bar"])
    axis.set_title("A title")
    return ElementTree.fromstring(inline(figure, name, alt, whole=whole))


def test_texts_show_where_the_mouse_rests_and_are_no_markup():
    points = [one for one in drawn().iter("g") if one.get("class") == "pt"]
    assert sorted(one.find("title").text for one in points) == ["a <b> & c", "a bar", 'last "one"', "middle"]
    tips = [one.find("text").text for one in points if one.find("text") is not None]
    assert sorted(tips) == ["a <b> & c", 'last "one"', "middle"]  # beside dots, not beside bars


def test_the_figure_names_itself_and_needs_nothing_from_outside():
    root = drawn(alt='a "quoted" <text>', whole=True)
    assert (root.get("role"), root.get("aria-label"), root.get("class")) == (
        "img",
        'a "quoted" <text>',
        "figure whole",
    )
    assert (root.get("width"), root.get("viewBox")) == ("384", "0 0 288 216")  # 4 x 3 inches at 96 and 72 dpi
    text = ElementTree.tostring(root, encoding="unicode")
    assert "http" not in text
    assert not list(root.iter("style"))
    assert not list(root.iter("a"))
    assert not list(root.iter("metadata"))
    assert "A title" in [one.text for one in root.iter("text")]  # a text, not drawn letters


def test_ids_of_two_figures_differ_and_every_reference_is_there():
    first, second = drawn("one"), drawn("two")
    ids = [{element.get("id") for element in root.iter() if element.get("id")} for root in (first, second)]
    assert not ids[0] & ids[1]
    for root, own in zip((first, second), ids, strict=True):
        used = {element.get("href")[1:] for element in root.iter("use")}
        clips = {element.get("clip-path")[5:-1] for element in root.iter() if element.get("clip-path")}
        assert used
        assert clips
        assert used | clips <= own


def test_colours_are_those_of_the_page():
    text = ElementTree.tostring(drawn(), encoding="unicode")
    assert "var(--blue)" in text
    assert "var(--red)" in text
    assert not [colour for colour in COLOURS if colour in text]
    for colour in (figures.BLUE, figures.ORANGE, figures.GREEN, figures.RED):
        assert to_hex(colour) in COLOURS


def test_the_same_figure_is_the_same_text():
    assert ElementTree.tostring(drawn()) == ElementTree.tostring(drawn())


def test_a_hatch_keeps_its_pattern():
    import numpy as np

    figure = figures.harm(["Ada"], ["Ada", "Bo"], np.array([[np.nan, -3.0]]), np.array([[True, False]]), "")
    root = ElementTree.fromstring(inline(figure, "h", "", whole=True))
    patterns = {one.get("id") for one in root.iter("pattern")}
    assert patterns
    assert any(f"url(#{name})" in (one.get("style") or "") for name in patterns for one in root.iter("path"))
    titles = [one.text for one in root.iter("title")]
    assert "Ada × Bo: -3.0 points" in titles
