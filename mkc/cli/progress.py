"""A line on a terminal's stderr that moves while something takes its time."""

from rich.console import Console
from rich.markup import escape
from rich.status import Status


def progress(doing: str) -> Status:
    """Shown until the block ends; its `update` says what is being done now."""
    return Console(stderr=True).status(escape(doing))
