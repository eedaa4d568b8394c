"""The picture of the operators."""

from dataclasses import replace
from xml.etree import ElementTree as ET

from mkc.compiler import Compilation, lower
from mkc.inspect.colours import PALETTE, colours
from mkc.inspect.picture import picture

SVG = "{http://www.w3.org/2000/svg}"


def test_there_is_a_box_for_every_operator(deep: Compilation) -> None:
    (section,) = deep.sections
    drawing = ET.fromstring(picture(section))
    hints = [title.text or "" for title in drawing.iter(f"{SVG}title")]
    assert len(hints) == len(section.placed.nodes)
    assert all(node.name in hint for node, hint in zip(section.placed.nodes, hints, strict=True))


def test_names_cannot_break_the_picture(mlp: Compilation) -> None:
    graph = replace(mlp.sections[0].graph, name="<lambda> & co")
    drawing = ET.fromstring(picture(lower(graph, mlp.target)))
    assert any("<lambda> & co" in (text.text or "") for text in drawing.iter(f"{SVG}text"))


def test_nothing_is_fetched_from_elsewhere(mlp: Compilation) -> None:
    text = picture(mlp.sections[0]).replace("http://www.w3.org/2000/svg", "")
    assert "http" not in text
    assert "href" not in text


def test_operators_keep_the_colours_they_are_given(mlp: Compilation) -> None:
    assert "#123456" in picture(mlp.sections[0], {"linear": "#123456", "elementwise": "#654321"})


def test_colours_depend_on_names_alone() -> None:
    assert colours(["b", "a", "b"]) == colours({"a", "b"}) == {"a": PALETTE[0], "b": PALETTE[1]}


def test_more_operators_than_colours_begin_again() -> None:
    assert len(set(colours(map(str, range(40))).values())) == len(PALETTE)
