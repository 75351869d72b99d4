"""A figure as SVG inside a page: it follows the page's colours, and shows a text where the mouse rests.

The same matplotlib figure gives the PNG file and the SVG. Its texts stay texts. Its colours become CSS
variables of the page (templates/style.css.html), so that a dark page has a dark figure.
"""

from __future__ import annotations

import io
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup

from muwa.report.figures import Figure

PIXELS = 96  # pixels of the page per inch of a figure
COLOURS = {  # of a figure -> of the page
    "#000000": "currentColor",
    "#222222": "currentColor",
    "#333333": "currentColor",
    "#666666": "var(--soft)",
    "#999999": "var(--soft)",
    "#bdbdbd": "var(--dots)",
    "#c2c2c2": "var(--dots)",
    "#e6e6e6": "var(--line)",
    "#0072b2": "var(--blue)",
    "#e69f00": "var(--orange)",
    "#009e73": "var(--green)",
    "#d55e00": "var(--red)",
}
_POINT = "pt"  # CSS class of what has a text
_TIP = "tip"  # CSS class of that text, if it is drawn beside the point


def inline(figure: Figure, name: str, alt: str, *, whole: bool) -> Markup:
    """The figure as an `<svg>` element.

    Args:
        name: Unique in the page: the figure's ids begin with it.
        alt: What is seen, for those who do not see it.
        whole: Whether it keeps its size on a page that is narrower.
    """
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(buffer.getvalue())
    for element in root.iter():
        _plain(element, name)
    for parent, tag in ((root, "metadata"), *((defs, "style") for defs in root.findall("defs"))):
        for child in parent.findall(tag):  # the style would be one of the whole page
            parent.remove(child)
    width = round(PIXELS * figure.get_figwidth())
    middle = float(root.attrib["viewBox"].split()[2]) * 0.55
    for element in root.iter("a"):
        _titled(element, middle)
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "width": str(width),
        "role": "img",
        "aria-label": alt,
        "class": "figure whole" if whole else "figure",
        "style": f"--natural:{width}px",
    }
    # tostring escapes all texts
    return Markup(ElementTree.tostring(root, encoding="unicode", short_empty_elements=False))


def _plain(element: ElementTree.Element, name: str) -> None:
    """Without namespaces; ids of its own; colours of the page."""
    element.tag = element.tag.rpartition("}")[2]
    attributes = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
    for key, value in attributes.items():
        if key == "id":
            attributes[key] = f"{name}-{value}"
        elif key == "href" and value.startswith("#"):
            attributes[key] = f"#{name}-{value[1:]}"
        elif key in ("style", "clip-path"):
            value = value.replace("url(#", f"url(#{name}-")
            for colour, variable in COLOURS.items():
                value = value.replace(colour, variable)
            attributes[key] = value
    element.attrib = attributes


def _titled(link: ElementTree.Element, middle: float) -> None:
    """Turn a link into a group with a title, and a text beside a point."""
    text = link.attrib["href"]
    link.tag, link.attrib = "g", {"class": _POINT}
    title = ElementTree.Element("title")
    title.text = text
    link.insert(0, title)
    point = link.find(".//use")
    if point is not None and "x" in point.attrib:
        x, y = float(point.attrib["x"]), float(point.attrib["y"])
        anchor, shift = ("end", -7) if x > middle else ("start", 7)
        place = {"x": f"{x + shift:.1f}", "y": f"{y - 5:.1f}", "text-anchor": anchor, "class": _TIP}
        tip = ElementTree.SubElement(link, "text", place)
        tip.text = text
