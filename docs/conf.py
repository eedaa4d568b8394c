"""How Sphinx reads the documentation: Markdown through MyST, shown by furo."""

from importlib.metadata import version as installed

project = "mkc"
release = version = installed("mkc-compiler")

extensions = ["myst_parser"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"mkc {release}"
html_show_copyright = False
