"""Graph -> Graph. What streams make for each other is published, word by word, instead of stored and signalled."""

from collections.abc import Sequence
from dataclasses import replace

from mkc.ir.dtype import DType
from mkc.ir.graph import Graph, Kind, Node, Storage, Tensor
from mkc.ops._streaming import VECTOR
from mkc.ops.decode_attention import batch as sequences
from mkc.ops.stream_linear import extras, first_weight, residual
from mkc.passes._uses import rewritten

WORD = 4  # elements that are published at once


def publish(graph: Graph, signalled: Sequence[str]) -> Graph:
    """Scratch that streams write and only streams read, as rows or operands, becomes words, unless it is to be signalled."""
    made = {t.storage for n in graph.nodes if n.op in POLLED for t in n.outputs if t.storage.kind is Kind.ARENA}
    public = {t.storage for n in graph.nodes for t in (*n.inputs, *n.outputs) if not _is_polled(n, t)}
    public |= {storage for storage, kind in _edges(graph).items() if kind in signalled}
    words = {s: replace(s, kind=Kind.WORDS) for s in made - public - {t.storage for t in graph.outputs}}
    return rewritten(graph, {}, lambda t: replace(t, storage=words.get(t.storage, t.storage)))


def _edges(graph: Graph) -> dict[Storage, str]:
    """The kind of edge that a result is for its readers, where it need not be words: parts of attention, the best of shares
    and the heads of a batch must.

    What goes into a norm is of the kind of what comes out. Else its one worker alone would see the event, and all others
    by polls that it had: the checker refuses events that are kept from being overtaken by polls.
    """
    kinds: dict[Storage, str] = {}
    for node in graph.nodes:
        match node.op:
            case "stream_linear" if not node["best"]:
                kinds[node.output.storage] = "rows"
            case "stream_merge":
                kinds[node.output.storage] = "rows"
            case "stream_norm":
                kinds[node.output.storage] = "norms"
            case "decode_attention":
                heads = {t.storage for t in node.inputs[:3]} & kinds.keys()
                kinds |= dict.fromkeys(heads, "heads" if sequences(node) == 1 else "")
    for norm in (node for node in reversed(graph.nodes) if node.op == "stream_norm"):
        kinds |= dict.fromkeys({t.storage for t in norm.inputs} & kinds.keys(), kinds[norm.output.storage])
    return kinds


def _is_polled(node: Node, tensor: Tensor) -> bool:
    """By the word, which is four elements of a row in bfloat16; two are read at once."""
    row = tensor.shape[-1] if tensor.shape else 1
    whole = tensor.dtype is DType.F32 or tensor.layout.offset % VECTOR == 0 == row % WORD
    return node.op in POLLED and whole and tensor in POLLED[node.op](node)


def _stream_words(node: Node) -> tuple[Tensor, ...]:
    lse = (node.inputs[first_weight(node) - 2],) if node["merge"] else ()
    values = (node.inputs[0], *residual(node), *extras(node), *node.outputs)
    entries = node.outputs if node["best"] else ()
    return (*lse, *entries, *(t for t in values if t.dtype is DType.BF16 and t.layout.is_contiguous))


def _attention_words(node: Node) -> tuple[Tensor, ...]:
    return (*node.inputs[:3], *node.outputs[:2])


def _all_words(node: Node) -> tuple[Tensor, ...]:
    return (*node.inputs, *node.outputs)


def _argmax_words(node: Node) -> tuple[Tensor, ...]:
    return node.inputs[:1]


# what each may poll or publish
POLLED = {
    "stream_linear": _stream_words, "decode_attention": _attention_words, "stream_argmax": _argmax_words, "stream_norm": _all_words,
    "stream_merge": _all_words,
}  # fmt: skip
