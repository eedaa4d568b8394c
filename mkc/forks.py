"""Locks that a fork waits for: no child of a process begins with half a launch, or with a lock that nobody will release."""

import os
import threading
from itertools import count
from weakref import WeakValueDictionary

_numbers = count()
_locks: WeakValueDictionary[int, "Lock"] = WeakValueDictionary()  # in the order in which they were made
_held: list["Lock"] = []  # by the fork that is going on


class Lock:
    """As `threading.Lock`. Who takes several takes them in the order in which they were made."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a signal handler may fork inside a launch of its own thread
        _locks[next(_numbers)] = self

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def _wait() -> None:
    for _, lock in sorted(_locks.items()):
        lock._lock.acquire()
        _held.append(lock)


def _go_on() -> None:
    while _held:
        _held.pop()._lock.release()


os.register_at_fork(before=_wait, after_in_parent=_go_on, after_in_child=_go_on)
