"""Machine -> Costs; Graphs, Target -> Target. What was measured on this machine, as `mkc bench --tune` has kept it.

An entry that is damaged, or out of range, is none. With MKC_TUNED=0 there are none at all.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from typing import Any

from mkc import cache, config
from mkc.errors import OptionError
from mkc.ir.choices import Choices
from mkc.ir.cost import Costs
from mkc.ir.graph import Graph, Node
from mkc.ir.target import Target

MOST = 1e9  # nanoseconds, or bytes in one; more would be damage
BOOKKEEPING = 4096  # bytes: operators that touch fewer, such as the search for a token that ends a text, are part of no name
COSTS = ("bytes_per_ns", "task_ns", "event_ns")  # of a target, which choices were measured with


def entry(kind: str, key: str) -> dict[str, Any]:
    """The JSON object filed under (kind, key), or an empty one."""
    if not config.tuned():
        return {}
    try:
        given = json.loads(cache.recalled(kind, key) or b"{}")
    except ValueError:
        return {}
    return given if isinstance(given, dict) else {}


def file(kind: str, key: str, content: dict[str, Any]) -> None:
    """For `entry`, in place of what was there."""
    cache.keep(kind, key, json.dumps(content).encode())


# ---- what a machine costs


def costs(machine: str) -> Costs | None:
    given = entry("costs", machine)
    return Costs(**given) if _are_costs(given, [field.name for field in fields(Costs)]) else None


def keep_costs(machine: str, found: Costs) -> None:
    """For later plans on machines of this name."""
    file("costs", machine, asdict(found))


def _are_costs(given: dict[str, Any], names: Sequence[str]) -> bool:
    return given.keys() == set(names) and all(type(n) in (int, float) and 0 < n < MOST for n in given.values())


# ---- how graphs are planned best


def settled(graphs: Sequence[Graph], target: Target, policy: str) -> Target:
    """The target as a search has found it best for these graphs, or as it is. Nobody looks again."""
    found = chosen(graphs, target, policy) if target.machine else None
    return replace(found or target, machine="")


def chosen(graphs: Sequence[Graph], target: Target, policy: str) -> Target | None:
    """The target with the choices, and the costs, that were kept for these graphs on its machine."""
    given = entry("choices", _key(graphs, target, policy))
    measured, choices = given.get("costs"), given.get("choices")
    if not isinstance(measured, dict) or not isinstance(choices, dict) or not _are_costs(measured, COSTS):
        return None
    try:
        return replace(target, choices=_choices(choices), **measured)
    except (OptionError, TypeError):  # out of range, or from another version
        return None


def keep(graphs: Sequence[Graph], target: Target, policy: str) -> None:
    """For later plans of the same graphs on this machine."""
    measured = {name: getattr(target, name) for name in COSTS}
    file("choices", _key(graphs, target, policy), {"costs": measured, "choices": asdict(target.choices)})


def _choices(given: dict[str, Any]) -> Choices:
    signalled = given.get("signalled")
    return Choices(**given | ({"signalled": tuple(signalled)} if isinstance(signalled, list) else {}))


def _key(graphs: Sequence[Graph], target: Target, policy: str) -> str:
    """The machine and what a plan depends on beside costs and choices."""
    sizes = target.workers, target.lanes, target.scratch_bytes, target.cache_bytes
    facts = (target.name, target.arch, *sizes, target.streams, target.bulk_copies)
    return "\n".join([target.machine, repr(facts), policy, *map(digest, graphs)])


def digest(graph: Graph) -> str:
    """Of what the operators compute, without names, so that other weights of the same shapes find what was kept."""
    made = hashlib.sha256(repr(graph.loops).encode())
    for node in graph.nodes:
        if sum(t.nbytes for t in (*node.inputs, *node.outputs)) >= BOOKKEEPING:
            made.update(repr(_work(node)).encode())
    return made.hexdigest()


def _work(node: Node) -> tuple[object, ...]:
    tensors = (*node.inputs, *node.outputs)
    return node.op, node.attrs, len(node.inputs), [(t.dtype.name, t.layout, t.storage.kind.name) for t in tensors]
