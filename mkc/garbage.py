"""Python's garbage collector rests while many values are made that all stay: looking through them takes a seventh of a compilation."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def rests() -> Iterator[None]:
    """Unless it did already. What is made meanwhile is looked at after."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
