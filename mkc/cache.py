"""Compiled artefacts, kept by content: atomic to write, checked when read, private to the user."""

import hashlib
import os
import stat
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

from mkc import config, paths
from mkc.errors import TargetError

_MAGIC = b"mkc1"
_DIGEST = 32  # bytes of sha256 between the magic and the payload


def kept(kind: str, key: str, make: Callable[[], bytes]) -> bytes:
    """The bytes filed under (kind, key), made and filed if they are missing or damaged. Processes may share the folder."""
    found = recalled(kind, key)
    if found is None:
        found = make()
        keep(kind, key, found)
    return found


def recalled(kind: str, key: str) -> bytes | None:
    """The bytes filed under (kind, key), or None when there are none that are intact."""
    return _read(_path(kind, key))


def keep(kind: str, key: str, payload: bytes) -> None:
    """File bytes under (kind, key), in place of those that were there."""
    _write(_path(kind, key), payload)


def folder() -> Path:
    """The cache folder, made for this user alone. A folder that others could write to is refused."""
    path = config.cache_dir()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        info = path.stat()
    except OSError as error:
        raise TargetError(f"cannot use the cache folder {path}: {error}; set MKC_CACHE_DIR to another") from error
    if info.st_uid != os.getuid() or info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise TargetError(
            f"the cache folder {path} belongs to, or can be written by, another user; "
            "make it private (chmod 700) or set MKC_CACHE_DIR to another"
        )
    return path


@cache
def source_digest() -> str:
    """Of mkc itself: what one version of it has made is not for another."""
    made = hashlib.sha256()
    for path in (*sorted(paths.PACKAGE.rglob("*.py")), *sorted(p for p in paths.TEMPLATES.rglob("*") if p.is_file())):
        made.update(path.read_bytes())
    return made.hexdigest()


def _path(kind: str, key: str) -> Path:
    return folder() / f"{kind}-{hashlib.sha256(key.encode()).hexdigest()}"


def _read(path: Path) -> bytes | None:
    try:
        data = path.read_bytes()
    except OSError:
        return None
    payload = data[len(_MAGIC) + _DIGEST :]
    intact = data.startswith(_MAGIC) and data[len(_MAGIC) : len(_MAGIC) + _DIGEST] == hashlib.sha256(payload).digest()
    return payload if intact else None


def _write(path: Path, payload: bytes) -> None:
    """A file appears whole or not at all. A full disk costs the cache entry, not the compilation."""
    with suppress(OSError), tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder, path.name)
        made.write_bytes(_MAGIC + hashlib.sha256(payload).digest() + payload)
        os.replace(made, path)
