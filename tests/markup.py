"""HTML that the library makes for notebooks, as elements and texts."""

from xml.etree import ElementTree as ET

__all__ = ["parsed", "shown_in"]


def parsed(markup: str) -> ET.Element:
    """Return the root of HTML that is XML too, or fail."""
    return ET.fromstring(markup)  # noqa: S314 - ours


def shown_in(markup: str) -> list[str]:
    """Return the texts that a reader sees, in their order; fail for HTML that runs or loads."""
    root = parsed(markup)
    tags = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert tags <= {"table", "caption", "tr", "th", "td", "div", "p", "span"} | {
        *("svg", "g", "path", "rect", "text", "polyline")
    }
    names = {name for element in root.iter() for name in element.attrib}
    assert not {name for name in names if name.startswith("on") or name in ("href", "src")}
    return list(root.itertext())
