"""Compilation -> text. Every stage of a kernel by name, in the order of its journey, and as files in a folder."""

import hashlib
import re
from pathlib import Path

from mkc import config
from mkc.compiler import Compilation, Lowering

LEVELS = ("graph", "fused", "placed", "tasks", "links", "events", "schedule")


def stages(compilation: Compilation) -> dict[str, str]:
    """Every stage as text: the levels of each section, then `program` and `page`.

    Where a kernel has several sections, a level is named with its section: `tasks.prompt`, `tasks.decode`.
    """
    labelled = list(zip(labels(compilation), compilation.sections, strict=True))
    texts = {level + label: _level(section, level) for level in LEVELS for label, section in labelled}
    return {**texts, "program": str(compilation.program), "page": compilation.source.complete}


def write_stages(compilation: Compilation, folder: Path) -> list[Path]:
    """One file for each stage, numbered in order: `1-graph.txt` to `9-page.cu`. Returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, text in stages(compilation).items():
        path = folder / _file(name, compilation.source.language)
        path.write_text(text if text.endswith("\n") else text + "\n")
        written.append(path)
    return written


def dump(compilation: Compilation) -> Path | None:
    """Write the stages into a folder of their own inside $MKC_DUMP, if it is set. Equal compilations share a folder."""
    root = config.dump_dir()
    if root is None:
        return None
    digest = hashlib.sha256("\0".join(stages(compilation).values()).encode()).hexdigest()[:10]
    folder = root / f"{file_name('-'.join(s.graph.name for s in compilation.sections))}-{digest}"
    write_stages(compilation, folder)
    return folder


def labels(compilation: Compilation) -> tuple[str, ...]:
    """What tells sections apart in names of files: nothing, `.name`, or `.number` where names repeat."""
    names = [file_name(section.graph.name) for section in compilation.sections]
    if len(names) == 1:
        return ("",)
    return tuple(f".{name}" if len({*names}) == len(names) else f".{i}" for i, name in enumerate(names))


def file_name(name: str) -> str:
    """A name that every file system takes: a function may be called `<lambda>`."""
    return re.sub(r"[^\w.-]+", "", name)[:60] or "graph"


def _level(section: Lowering, level: str) -> str:
    match level:
        case "links":
            return str(section.linked)
        case _:
            return str(getattr(section, level))


def _file(name: str, language: str) -> str:
    number = (*LEVELS, "program", "page").index(name.partition(".")[0]) + 1
    if name == "page":
        return f"{number}-page.{'cu' if language == 'cuda' else 'cpp'}"
    return f"{number}-{name}.txt"
