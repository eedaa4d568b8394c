"""A page of Markdown -> the same page, with what its examples print. Run it after a change: python docs/blocks.py

Blocks marked `python` run one after another, in one namespace for each page. `<!-- shows: expression -->` before a block
says what the block holds: the expression as text, after the blocks above it. `<!-- file: path -->` names the file that a
block is; it does not run.
"""

import os
import platform
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))

_BLOCK = re.compile(
    r"(?:<!-- (?P<role>shows|file): (?P<what>.+?) -->\n)?^```(?P<kind>[\w+]*)\n(?P<body>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


def refreshed(page: str, name: str = "page") -> str:
    """The page as it should be. Raises whatever an example raises."""
    sys.modules[name] = ModuleType(name)  # Dynamo looks up the globals of a function by the name of its module
    namespace = vars(sys.modules[name])

    def fill(match: re.Match[str]) -> str:
        if match["role"] == "shows":
            return f"<!-- shows: {match['what']} -->\n```{match['kind']}\n{_text(eval(match['what'], namespace))}\n```"
        if match["role"] is None and match["kind"] == "python":
            line = page.count("\n", 0, match.start("body"))
            exec(compile("\n" * line + match["body"], name, "exec"), namespace)
        return match.group()

    return _BLOCK.sub(fill, page)


def files(page: str) -> Iterator[tuple[str, str]]:
    """The files that a page holds: path and text."""
    yield from ((match["what"], match["body"]) for match in _BLOCK.finditer(page) if match["role"] == "file")


def _text(value: object) -> str:
    """The same on every machine, without spaces at the ends of lines."""
    text = str(value).replace(f"cpu {platform.machine()}", "cpu x86_64")
    return "\n".join(line.rstrip() for line in text.strip("\n").splitlines())


if __name__ == "__main__":
    os.chdir(ROOT)  # where examples find files
    for path in PAGES:
        text = path.read_text()
        path.write_text(refreshed(text, path.name))
