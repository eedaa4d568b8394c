"""Program, Target -> Source. The page: names, specialisations and constants over plain headers."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import jinja2

from mkc.ir.program import Program
from mkc.ir.target import Target
from mkc.paths import TEMPLATES

_NOT_IN_COMMENTS = re.compile(r"[^\w .,:;<>()\[\]{}=+*%#@!'|&-]")
_COMMENT = re.compile(r"^//.*$", re.MULTILINE)
_INCLUDE = re.compile(r"^#include <(mkc/[^>]+)>\n", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Source:
    """A rendered page. `text` includes headers; `complete` has them laid in and compiles on its own."""

    text: str
    complete: str
    language: str  # "cuda" or "c++"

    @property
    def digest(self) -> str:
        """Names the page and every header in it."""
        return hashlib.sha256(self.complete.encode()).hexdigest()

    def __str__(self) -> str:
        return self.complete


def render(program: Program, target: Target, name: str = "megakernel", summary: str = "") -> Source:
    language = "cuda" if target.name == "cuda" else "c++"
    template = _environment().get_template(_page(program, language))
    text = template.render(
        name=name,
        target=target,
        program=program,
        talking=_alike([body.type for body in program.bodies]),
        computing=_alike([body.computes for body in program.bodies]),
        headers=sorted({body.header for body in program.bodies}),
        summary=[line.rstrip() for line in summary.split("\n")] if summary else [],
    )
    return Source(text, lay_in(text), language)


def _alike(types: Sequence[str]) -> dict[str, list[int]]:
    """The bodies that share each type of a half: their code is made once."""
    return {type_: [i for i, other in enumerate(types) if other == type_] for type_ in types if type_}


def _page(program: Program, language: str) -> str:
    if program.streams:
        return "kernel_stream.cu.j2"
    return "kernel.cu.j2" if language == "cuda" else "kernel.cpp.j2"


def lay_in(text: str) -> str:
    """The page with every mkc header in the place of its first include."""
    seen: set[str] = set()

    def replace(match: re.Match[str]) -> str:
        path = match.group(1)
        if path in seen:
            return ""
        seen.add(path)
        header = _header(path)
        return f"// ---- {path}\n{_INCLUDE.sub(replace, header)}\n"

    return _INCLUDE.sub(replace, text)


def code(text: str) -> str:
    """A page without what it says of its plan: plans that differ in numbers alone share what a compiler makes of it."""
    return _COMMENT.sub("//", text)


def render_template(name: str, **values: object) -> str:
    """Another page kept under templates/, such as those of `mkc.inspect`; HTML and SVG are escaped."""
    return _environment().get_template(name).render(**values)


def comment(value: object) -> str:
    """Text that ends a `//` comment nowhere and begins nothing in it: names of models and functions are the user's."""
    return _NOT_IN_COMMENTS.sub("_", str(value))


def drawable(text: str) -> str:
    """Text without the characters that XML has no way to write, escaped or not."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=lambda name: name is not None and name.endswith((".html.j2", ".svg.j2")),
    )
    environment.filters |= {"comment": comment, "drawable": drawable}
    return environment


@cache
def _header(path: str) -> str:
    return (TEMPLATES / path).read_text().replace("#pragma once\n", "")
