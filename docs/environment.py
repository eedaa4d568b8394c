"""config.VARIABLES -> docs/environment.md. Run it after a change there: python docs/environment.py"""

from pathlib import Path

from mkc.config import VARIABLES

PAGE = Path(__file__).with_suffix(".md")

HEAD = """\
# Environment variables

Each variable of `mkc` is declared once, in `mkc/config.py`, and this page is made from there by `docs/environment.py`. A
variable is read when it is needed, not at import. A value that it cannot take raises `OptionError`, and a compiler or a folder
that is not there `TargetError`; the message names the variable. The user's cache folder is `$XDG_CACHE_HOME`, or else `~/.cache`.

An argument wins over a variable: `mkc.compile(model, workers=4)` has four workers whatever `MKC_WORKERS` says.
`mkc doctor` prints those that are set.

| variable | default | meaning |
|---|---|---|
"""


def page() -> str:
    """The page as it should be."""
    rows = [
        f"| `{v.name}` | {f'`{v.default}`' if v.default else 'empty'} | {v.meaning} |\n" for v in VARIABLES
    ]
    return HEAD + "".join(rows)


if __name__ == "__main__":
    PAGE.write_text(page())
