"""Module -> digest of all that its traces depend on beside what they are given, or None where that cannot be told.

Modules of one digest have the same code, the same plain attributes, and tensors of the same shapes under the same names, so that a
trace of one is a trace of the other. Code counts as it is in memory: whoever replaces a function of a library changes the digest,
and there is none where the new one belongs to no library, since what that calls in turn is not known.
"""

import hashlib
import sys
from collections.abc import Iterator, Mapping
from enum import Enum
from functools import cached_property, partial
from operator import itemgetter
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from mkc import cache

READ = ("transformers.",)  # whose modules are read, function by function; of others the version counts, of mkc its source
APART = tuple(  # modules that find other things and remember what they have found: another digest in every process
    f"transformers.{name}" for name in ("models.auto.", "utils.import_utils", "utils.hub")
)
KNOWN = frozenset({"transformers", "mkc", "torch", "numpy", "huggingface_hub", "safetensors", "tokenizers", "tqdm", "typing_extensions"})
PLAIN = (type(None), bool, int, float, str, bytes, torch.dtype, torch.device, Enum)
OWN = ("_parameters", "_buffers", "_modules")  # of a module, told otherwise


class _Untold(Exception):  # noqa: N818  (no error: something that cannot be told)
    """Something whose meaning is not known."""


def fingerprint(module: nn.Module) -> str | None:
    made = hashlib.sha256()
    try:
        for fact in _facts(module):
            made.update(f"{fact}\n".encode())
    except (_Untold, RecursionError):
        return None
    return made.hexdigest()


def _facts(module: nn.Module) -> Iterator[str]:
    packages = [sys.modules[name] for name in ("torch", "numpy", "transformers") if name in sys.modules]
    yield f"{sys.version} {cache.source_digest()} {torch.get_default_dtype()} {torch.cuda.is_available()}"
    yield " ".join(f"{p.__name__} {p.__version__}" for p in packages)
    for name, part in module.named_modules(remove_duplicate=False):
        yield f"{name} {_name(type(part))}"
        yield from _attributes({key: value for key, value in vars(part).items() if key not in OWN})
    yield from _tensors(module)
    yield from _code({base for part in module.modules() for base in type(part).__mro__})


def _tensors(module: nn.Module) -> Iterator[str]:
    """Shapes, and who is tied to whom: by the first name of each."""
    first: dict[int, str] = {}
    for kind in (module.named_parameters, module.named_buffers):
        for name, tensor in kind(remove_duplicate=False):
            facts = (tuple(tensor.shape), tensor.stride(), tensor.storage_offset(), tensor.dtype, tensor.device.type)
            yield f"{name} {first.setdefault(id(tensor), name)} {type(tensor).__name__} {facts}"


def _attributes(given: Mapping[str, Any]) -> Iterator[str]:
    for key, value in given.items():
        if key != "_original_object_hash":  # of a configuration, and of this process alone
            yield f".{key}"
            yield from _value(value)


def _value(value: Any) -> Iterator[str]:
    """An attribute that is plain, made of plain ones, a configuration, or code."""
    if isinstance(value, PLAIN):
        yield repr(value)
    elif isinstance(value, type):
        yield _name(value)
    elif isinstance(value, set | frozenset):
        yield repr(sorted(map(repr, value)))
    elif isinstance(value, tuple | list):
        yield f"{len(value)} of"
        for one in value:
            yield from _value(one)
    elif isinstance(value, Mapping):
        yield from _attributes({repr(key): one for key, one in value.items()})
    elif isinstance(value, FunctionType | MethodType | partial):
        yield from _function(value)
    elif hasattr(value, "to_dict") and _is_read(type(value)):  # a configuration; it may hold more than it writes
        yield _name(type(value))
        yield from _attributes(vars(value))
    else:
        raise _Untold(value)


def _code(classes: set[type]) -> Iterator[str]:
    """Of all modules that these classes can name, from one to the next."""
    for base in sorted(classes, key=_name):
        if not _is_read(base):
            yield from _members(base)
    for owner in (torch, torch.Tensor, functional):
        _refuse_foreign(owner)
    met: set[str] = set()
    coming = {base.__module__ for base in classes if _is_read(base)}
    while coming:
        name = min(coming)
        met.add(name)
        space = {key: value for key, value in vars(sys.modules[name]).items() if not isinstance(value, ModuleType)}
        for key, value in space.items():
            yield f"{name}.{key}"
            yield from _members(value) if isinstance(value, type) and _is_read(value) else _global(value)
        coming |= {str(getattr(value, "__module__", "")) for value in space.values()}
        coming = {other for other in coming - met if _counts(other)}


def _counts(module: str) -> bool:
    return module in sys.modules and module.startswith(READ) and not module.startswith(APART)


def _refuse_foreign(owner: Any) -> None:
    """Raise _Untold where somebody has put a function of his own."""
    for value in vars(owner).values():
        if isinstance(value, FunctionType):
            for _ in _function(value):
                pass


def _members(owner: Any) -> Iterator[str]:
    """Functions of a class or a module, and tables of them."""
    for key, value in vars(owner).items():
        yield key
        yield from _global(value)


def _global(value: Any) -> Iterator[str]:
    """What stands in a class or a module: of code all of it, of tables and of objects of a library what they hold, else the type."""
    if isinstance(value, staticmethod | classmethod):
        yield from _global(value.__func__)
    elif isinstance(value, property):
        yield from _global(value.fget)
    elif isinstance(value, cached_property):
        yield from _global(value.func)
    elif isinstance(value, FunctionType | MethodType | partial):
        yield from _function(value)
    elif hasattr(value, "__wrapped__"):
        yield from _global(value.__wrapped__)
    elif isinstance(value, bool | int | float | str):
        yield repr(value)
    elif isinstance(value, dict) or _holds(value):
        held = dict.items(value) if isinstance(value, dict) else vars(value).items()
        for key, one in sorted(((repr(key), one) for key, one in held), key=itemgetter(0)):
            yield key
            yield from _global(one)
    else:
        yield _name(value) if isinstance(value, type) else type(value).__name__


def _holds(value: Any) -> bool:
    """Objects that a library keeps in a module, such as the table of attention functions."""
    return not isinstance(value, type | nn.Module) and _is_read(type(value)) and hasattr(value, "__dict__")


def _function(value: Any) -> Iterator[str]:
    """Its code, and that of functions which it encloses."""
    if isinstance(value, partial):
        yield from _value((*value.args, *value.keywords.items()))
        yield from _function(value.func)
        return
    function = value.__func__ if isinstance(value, MethodType) else value
    if not isinstance(function, FunctionType):
        yield type(function).__name__
        return
    space = str(function.__globals__.get("__name__"))
    package = space.partition(".")[0]
    if package not in KNOWN and package not in sys.stdlib_module_names and not package.startswith("namedtuple_"):
        raise _Untold(value)
    yield f"{space} {function.__qualname__}"
    if space.startswith(READ):
        yield from _instructions(function.__code__)
    for cell in function.__closure__ or ():
        try:
            inner = cell.cell_contents
        except ValueError:  # not yet set
            continue
        if isinstance(inner, FunctionType) and inner is not function:
            yield from _function(inner)


def _instructions(code: CodeType) -> Iterator[str]:
    yield f"{code.co_code.hex()} {code.co_names}"
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _instructions(constant)
        else:
            yield repr(sorted(map(repr, constant)) if isinstance(constant, frozenset) else constant)


def _is_read(kind: type) -> bool:
    return str(kind.__module__).startswith(READ)


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
