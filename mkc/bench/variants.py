"""A text or a file of TOML -> Variants; a Variant -> a tree to import. What is compared: a state of mkc, planned and run in one way."""

import io
import re
import shutil
import subprocess
import tarfile
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from mkc.bench.circumstances import commit, said
from mkc.errors import OptionError
from mkc.ir.choices import Choices
from mkc.targets.kernel import Tuning
from mkc.targets.tuning import MOST_CYCLES

SYNTAX = """\
A variant is NAME=TREE[:SETTING=VALUE,...], as in

    base=HEAD~3    "fast=.:delay=1000,one_in=1,signalled=rows+heads"    few=old.tar:ring_sm90.kRollingSlots=4

TREE is a folder with mkc and templates in it, a tar of one, or a commit of the repository that mkc stands in. A SETTING is a
field of Tuning (window, pace, delay) or of mkc.Choices, or a constant of the device headers, with its header's name before it
where several have it. A file of TOML has a table for each variant:

    [fast]
    tree = "."
    delay = 1000
"""
PARTS = ("mkc", "templates")
BENCH = Path(__file__).resolve().parent
REPOSITORY = BENCH.parent.parent
CHOICES, TUNING = ({field.name for field in fields(kind)} for kind in (Choices, Tuning))
Pairs = tuple[tuple[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Build:
    """What takes a process of its own. Variants that differ in their tuning alone share one."""

    tree: str
    choices: Pairs = ()  # that differ from the default of the tree
    constants: Pairs = ()  # of its device headers


@dataclass(frozen=True, slots=True)
class Variant:
    """A name, what is built, and how it is run. Raises OptionError for what can be neither planned nor run."""

    name: str
    build: Build
    tuning: Pairs = ()  # that differs from what its kernel has of itself

    def __post_init__(self) -> None:
        if not self.name or not self.build.tree:
            raise OptionError(f"a variant is NAME=TREE, not {self.name}={self.build.tree}; see python -m mkc.bench.compare --help")
        Choices(**dict(self.build.choices))
        for name, value in self.tuning:
            if type(value) is not int or not (name == "window") <= value <= MOST_CYCLES:
                raise OptionError(f"variant {self.name}: {name}={value!r} must be a whole number up to {MOST_CYCLES}")

    def __str__(self) -> str:
        settings = [f"{name} {value}" for name, value in (*self.build.choices, *self.build.constants, *self.tuning)]
        return ", ".join([self.build.tree, *settings])

    def json(self) -> dict[str, Any]:
        build = self.build
        settings = {"choices": build.choices, "constants": build.constants, "tuning": self.tuning}
        return {"name": self.name, "tree": build.tree} | {kind: dict(pairs) for kind, pairs in settings.items()}


# ---- from what a user writes


def parsed(text: str) -> Variant:
    name, _, rest = text.partition("=")
    tree, _, settings = rest.partition(":")
    pairs = [setting.partition("=") for setting in settings.split(",") if setting]
    return _variant(name.strip(), tree.strip(), {key.strip(): _value(key.strip(), value.strip()) for key, _, value in pairs})


def read(file: Path) -> list[Variant]:
    """In the order of the file. Raises OptionError."""
    try:
        tables = tomllib.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise OptionError(f"{file} is no file of TOML: {error}") from error
    if not all(isinstance(table, dict) and isinstance(table.get("tree"), str) for table in tables.values()):
        raise OptionError(f'{file} must have a table for each variant, with tree = "..." in it')
    return [
        _variant(name, table["tree"], {key: tuple(v) if isinstance(v, list) else v for key, v in table.items() if key != "tree"})
        for name, table in tables.items()
    ]


def _value(name: str, text: str) -> Any:
    """As its setting has it: names, a number, or else the text, which whoever wants a number will refuse."""
    if name == "signalled":
        return tuple(filter(None, text.split("+")))
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def _variant(name: str, tree: str, settings: Mapping[str, Any]) -> Variant:
    def those(wanted: Iterable[str]) -> Pairs:
        return tuple(sorted((key, settings[key]) for key in wanted))

    constants = settings.keys() - CHOICES - TUNING
    return Variant(name, Build(tree, those(settings.keys() & CHOICES), those(constants)), those(settings.keys() & TUNING))


def all_different(variants: Sequence[Variant]) -> None:
    """Raises OptionError for a name that stands for two."""
    names = [variant.name for variant in variants]
    if twice := {name for name in names if names.count(name) > 1}:
        raise OptionError(f"there are two variants of the name {min(twice)}")


# ---- a tree of its own


def unpack(build: Build, to: Path) -> str | None:
    """The tree at `to`, with its constants, and with our mkc/bench, so that all are measured in one way. Gives its commit, if any.

    Raises OptionError for a tree that is none, and for a constant that it does not have.
    """
    found = _taken(build.tree, to)
    if not (to / "mkc" / "__init__.py").is_file() or not (to / "templates").is_dir():
        raise OptionError(f"{build.tree} has no {' and '.join(PARTS)} in it")
    shutil.rmtree(to / "mkc" / "bench", ignore_errors=True)
    shutil.copytree(BENCH, to / "mkc" / "bench", ignore=shutil.ignore_patterns("__pycache__"))
    for name, value in build.constants:
        _set(to / "templates", name, str(value))
    return found


def _taken(tree: str, to: Path) -> str | None:
    path = Path(tree)
    if path.is_dir():
        for part in PARTS:
            if (path / part).is_dir():
                shutil.copytree(path / part, to / part, ignore=shutil.ignore_patterns("__pycache__"))
        return commit(path) if said("git", "-C", tree, "rev-parse", "--show-prefix") == "" else None  # its own, none around it
    try:
        packed = path.read_bytes() if path.is_file() else _archived(tree)
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            members = [member for member in archive if member.name.partition("/")[0] in PARTS]
            archive.extractall(to, members, filter="data")
            return archive.pax_headers.get("comment")  # where `git archive` says the commit
    except (OSError, tarfile.TarError) as error:
        raise OptionError(f"{tree} is no tar of a tree: {error}") from error


def _archived(revision: str) -> bytes:
    command = ["git", "-C", str(REPOSITORY), "archive", "--format=tar", f"{revision}^{{commit}}", *PARTS]
    done = None if revision.startswith("-") else subprocess.run(command, capture_output=True, check=False)  # an option is no commit
    if done is None or done.returncode:
        raise OptionError(f"{revision!r} is neither a folder, nor a tar, nor a commit of {REPOSITORY}")
    return done.stdout


def _set(templates: Path, constant: str, value: str) -> None:
    """`#define NAME value` or `constexpr int NAME = value` of one header, named as `header.NAME` where several have it."""
    header, _, name = constant.rpartition(".")
    of_macro = rf"(^[ \t]*#define {re.escape(name)}[ \t]+)[^\s/]+(?=[ \t]*(?:$|//))"
    of_variable = rf"(\bconstexpr\b[^;()]*\b{re.escape(name)} = )[^;,()<>]+(?=[;,])"
    stands = re.compile(f"{of_macro}|{of_variable}", re.MULTILINE)
    texts = {file: file.read_text() for file in sorted(templates.rglob(f"{header or '*'}.cuh"))}
    places = [file for file, text in texts.items() for _ in stands.finditer(text)]
    if not places:
        settings = ", ".join(sorted(CHOICES | TUNING))
        raise OptionError(f"there is no {constant}: neither a setting ({settings}), nor a constant of the device headers")
    if len(places) > 1:
        stems = ", ".join(file.stem for file in places)
        raise OptionError(f"{constant} stands in {stems}; one of a single header is named as in {places[0].stem}.{name}")
    places[0].write_text(stands.sub(lambda found: (found[1] or found[2]) + value, texts[places[0]]))
