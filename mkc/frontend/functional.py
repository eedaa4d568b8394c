"""Exported graph -> functional graph. Writes become values where nobody can tell the difference; PyTorch's own pass takes the rest.

`torch.export` leaves writes as they are. `run_decompositions` makes values of any writes to any views, by running the model
twice more, which takes longer than all else that is done to trace it. But a model that decodes writes rows of its caches and
whole small states, and for that it is enough to follow each tensor's latest value through the graph.
"""

import operator
from collections.abc import Collection
from typing import Any

import torch
from torch import fx

WRITES = (  # whose values have their target's dtype and shape
    "copy_", "index_copy_", "scatter_", "index_put_", "masked_fill_", "fill_", "detach_",
)  # fmt: skip
CASTS = tuple(f"aten.{name}" for name in ("to.dtype", "to.dtype_layout", "to.device", "to.other", "contiguous.default"))
CHECKS = ("aten._assert_tensor_metadata.default", "aten._assert_async.msg", "aten.sym_constrain_range.default")  # without a result


def functional(graph: fx.Graph, known: Collection[str]) -> dict[fx.Node, fx.Node] | None:
    """Make values of the writes in a graph of ATen calls; the value that each written placeholder has in the end.

    Or None, and the graph as it was, where a view shows a tensor from before a write after it, where a call writes in another
    way, or where one would not be among the `known` afterwards.
    """
    writes = [node for node in graph.nodes if _writes(node)]
    shown = _shown(graph)
    if not all(_is_plain(node, known) for node in graph.nodes) or not all(_is_whole(node, shown) for node in writes):
        return None
    if _seen_late(graph, writes, shown):
        return None
    latest = _renamed(graph, shown)
    for node in graph.nodes:
        if str(node.target) in CASTS:
            _settle(node)
    _drop_unseen(graph, set(latest.values()))
    return {root: latest[root] for root in graph.find_nodes(op="placeholder") if root in latest}


def _writes(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _value_of(write: fx.Node) -> Any:
    """The call that gives as a value what this one writes, or None."""
    packet, _, overload = str(write.target).removeprefix("aten.").partition(".")
    return getattr(getattr(torch.ops.aten, packet[:-1]), overload, None) if packet in WRITES else None


def _is_plain(node: fx.Node, known: Collection[str]) -> bool:
    """Whether it is a call that somebody knows, once it is a value."""
    if node.op != "call_function":
        return node.op in ("placeholder", "output")
    if node.target is operator.getitem or str(node.target) in (*CASTS, *CHECKS):
        return True
    return str(_value_of(node) if _writes(node) else node.target) in known


def _shown(graph: fx.Graph) -> dict[fx.Node, frozenset[fx.Node]]:
    """Whose memory a node may show: its own if it is computed, and of what a view or a composite call is given, all of it."""
    shown: dict[fx.Node, frozenset[fx.Node]] = {}
    for node in graph.nodes:
        if _writes(node):
            shown[node] = shown[node.args[0]]
        elif node.target is operator.getitem or _may_show(node.target):
            shown[node] = frozenset().union(*(shown[given] for given in node.all_input_nodes))
        else:
            shown[node] = frozenset((node,))
    return shown


def _may_show(target: Any) -> bool:
    """Calls made of others may give back what they were given, and do not say so."""
    if not isinstance(target, torch._ops.OpOverload):
        return False
    name: str = target.name()  # type: ignore[no-untyped-call]
    return target.is_view or torch._C._dispatch_has_kernel_for_dispatch_key(name, "CompositeImplicitAutograd")


def _is_whole(write: fx.Node, shown: dict[fx.Node, frozenset[fx.Node]]) -> bool:
    """Whether its target is a tensor with a memory of its own, or the same after another write."""
    target = write.args[0]
    assert isinstance(target, fx.Node)
    return shown[target] == {target} or _writes(target)


def _seen_late(graph: fx.Graph, writes: list[fx.Node], shown: dict[fx.Node, frozenset[fx.Node]]) -> bool:
    """Whether what shows a memory as it was before a write is looked at after it."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    written: dict[fx.Node, list[int]] = {}
    for write in writes:
        (root,) = shown[write]
        written.setdefault(root, []).append(order[write])

    def is_late(view: fx.Node) -> bool:
        until = max((order[user] for user in view.users), default=-1)
        return any(order[view] < at < until for root in shown[view] for at in written.get(root, ()))

    return any(is_late(node) for node in order if not _writes(node) and node not in shown[node])


def _renamed(graph: fx.Graph, shown: dict[fx.Node, frozenset[fx.Node]]) -> dict[fx.Node, fx.Node]:
    """Whoever names a written tensor gets its latest value instead; the last values, by whose they are."""
    latest: dict[fx.Node, fx.Node] = {}
    holders: dict[fx.Node, fx.Node] = {}  # the tensor whose value each value is

    def value(given: fx.Node) -> fx.Node:
        return latest.get(holders.get(given, given), given)

    for node in graph.nodes:
        writes = _value_of(node) if _writes(node) else None
        if latest:
            node.args, node.kwargs = fx.node.map_arg((node.args, node.kwargs), value)
        if writes:
            (holders[node],) = shown[node]
            latest[holders[node]] = node
            node.target = writes
    return latest


def _settle(node: fx.Node) -> None:
    """A cast that may be none: one that is, or nothing."""
    given, found = node.args[0], node.meta["val"]
    assert isinstance(given, fx.Node)
    before = given.meta["val"]
    if found.dtype is before.dtype and found.stride() == before.stride():
        node.replace_all_uses_with(given)
    elif found.dtype is not before.dtype:
        node.target, node.args, node.kwargs = torch.ops.aten._to_copy.default, (given,), {"dtype": found.dtype}
    else:
        node.target, node.args, node.kwargs = torch.ops.aten.clone.default, (given,), {"memory_format": torch.contiguous_format}


def _drop_unseen(graph: fx.Graph, kept: set[fx.Node]) -> None:
    """Values that nobody looks at, other than those that stay in some memory."""
    for node in reversed(graph.nodes):
        if node.op == "call_function" and not node.users and node not in kept:
            graph.erase_node(node)
