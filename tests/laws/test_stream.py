"""stream: the decode step of an unmodified model becomes a few streams, and means the same in every legal order."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from random import Random
from typing import Any
from unittest import mock

import pytest
import torch
from oracle import interpreted, machine, raised
from torch import nn

from mkc.compiler import lower
from mkc.frontend.convert import Raised
from mkc.frontend.decoding import State, _Decode, _DecodeTogether, make_state, raise_decoding
from mkc.ir.builder import Builder
from mkc.ir.choices import UNCHOSEN, Choices
from mkc.ir.dtype import DType
from mkc.ir.expr import Arg, Call
from mkc.ir.graph import Graph, Kind, Node
from mkc.ir.layout import Layout, contiguous
from mkc.ops.decode_attention import splits
from mkc.passes._stream_joined import widened
from mkc.passes.fuse import fuse
from mkc.passes.stream import stream

transformers = pytest.importorskip("transformers")
AutoModelForCausalLM = transformers.AutoModelForCausalLM

ROOM = 192
STREAMS = ("stream_linear", "decode_attention", "stream_merge")
PLAIN = (  # whose layers are five streams, whatever their biases, norms, gates, windows and heads
    "llama", "llama, gelu", "llama, biased", "qwen2", "gemma", "mistral", "granite", "starcoder2", "phi", "phi3", "gpt-neox",
)  # fmt: skip


def tiny(kind: str, **changes: Any) -> Any:
    """A random bfloat16 model of one layer, unless told otherwise."""
    torch.manual_seed(0)
    sizes = dict(
        vocab_size=96, hidden_size=256, intermediate_size=320, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, head_dim=64, max_position_embeddings=256, tie_word_embeddings=True, pad_token_id=0,
        eos_token_id=None, bos_token_id=None,
    )  # fmt: skip
    config = getattr(transformers, f"{kind}Config")(**(sizes | changes))
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for parameter in model.parameters():  # far apart logits, so that rounding decides nothing
        parameter.mul_(3.0) if parameter.dim() > 1 else parameter.add_(0.2 * torch.randn_like(parameter))
    return model.to(torch.bfloat16)


MODELS: dict[str, Callable[[], Any]] = {
    "qwen3": lambda: tiny("Qwen3"),
    "qwen3, deep": lambda: tiny("Qwen3", num_hidden_layers=2, hidden_size=320, tie_word_embeddings=False),
    "llama": lambda: tiny("Llama", hidden_size=576, num_attention_heads=9, num_key_value_heads=3),
    "llama, gelu": lambda: tiny("Llama", hidden_act="gelu_pytorch_tanh", head_dim=128),
    "llama, biased": lambda: tiny("Llama", attention_bias=True, mlp_bias=True, vocab_size=97, head_dim=48),
    "llama, odd heads": lambda: tiny("Llama", head_dim=40),
    "qwen2": lambda: tiny("Qwen2", num_key_value_heads=1, hidden_size=896, num_attention_heads=14),
    "gemma": lambda: tiny("Gemma"),
    "gemma2": lambda: tiny("Gemma2", sliding_window=20, num_hidden_layers=2, head_dim=256, final_logit_softcapping=5.0),
    "gemma3": lambda: tiny("Gemma3Text", sliding_window=20, layer_types=["sliding_attention"]),
    "mistral": lambda: tiny("Mistral", sliding_window=70),
    "olmo": lambda: tiny("Olmo"),  # norms without gains
    "olmo2": lambda: tiny("Olmo2"),
    "granite": lambda: tiny("Granite", attention_multiplier=0.02, residual_multiplier=0.22, logits_scaling=8.0, head_dim=80),
    "starcoder2": lambda: tiny("Starcoder2", num_attention_heads=12, num_key_value_heads=1, head_dim=32, hidden_size=384),
    "phi": lambda: tiny("Phi", num_key_value_heads=4, vocab_size=80),
    "gpt-neox": lambda: tiny("GPTNeoX", num_key_value_heads=4),
    "glm4": lambda: tiny("Glm4"),  # dims are turned by pairs
    "phi3": lambda: tiny("Phi3", num_key_value_heads=4, vocab_size=88),
    "narrow": lambda: tiny("Llama", hidden_size=96, num_attention_heads=3, num_key_value_heads=1, head_dim=32, mlp_bias=True),
    "odd": lambda: tiny("Llama", hidden_size=288, num_attention_heads=9, num_key_value_heads=3, head_dim=32, intermediate_size=576),
    "odd, biased": lambda: tiny("Starcoder2", hidden_size=288, num_attention_heads=12, num_key_value_heads=1, head_dim=32),
    "odd, long": lambda: tiny("Qwen3", hidden_size=128, intermediate_size=3200),
    "gpt2": lambda: tiny("GPT2", num_key_value_heads=4, n_embd=256, n_head=4, n_layer=1, n_positions=256),
}


def decoding(model: Any, *starts: int, page: int | None = None) -> tuple[State, Raised]:
    """A state in the middle of a text, or of several, its caches full of anything, and the decoding section."""
    state = middle_in_pages(model, page, *starts) if page else middle(model, *starts)
    return state, raise_decoding(model, state, ())


def middle(model: Any, *starts: int) -> State:
    state = make_state(model, ROOM, 4, max(1, len(starts)))
    for i, tensor in enumerate(state.caches):
        tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(i)))
    _, length, position, token, *_ = state.tensors
    position.copy_(torch.tensor(starts or (0,)))
    length.copy_(position + 1), token.copy_(7 + torch.arange(state.batch).unsqueeze(1))
    return state


def middle_in_pages(model: Any, page: int, *starts: int) -> State:
    """The same in shuffled pages. What is in none of them, or behind the position, is not a number."""
    apart, state = middle(model, *starts), make_state(model, ROOM, 4, len(starts), page)
    assert state.pages is not None
    Random(len(starts)).shuffle(state.pages.free)
    for mine, theirs in zip(state.tensors[:4], apart.tensors[:4], strict=True):
        mine.copy_(theirs)
    rooms = [min(start + 8, ROOM) for start in starts]
    state.limit.copy_(torch.tensor(rooms))
    for row, pages in enumerate(state.pages.share_out(rooms)):
        state.table[row, : len(pages)] = torch.tensor(pages)
    for pool, known in zip(state.caches, apart.caches, strict=True):
        pool.fill_(torch.nan)
        for row, start in enumerate(starts):
            for t in range(start):
                pool[state.table[row, t // page], :, t % page] = known[row, :, t]
    return state


def side_by_side(state: State) -> list[torch.Tensor]:
    """Caches [B, H, T, D], whatever the state has."""
    if not state.pages:
        return list(state.caches)
    return [pool[state.table].transpose(1, 2).flatten(2, 3)[:, :, :ROOM] for pool in state.caches]


@cache
def plain(kind: str, batch: int = 1, page: int | None = None) -> Graph:
    return fuse(decoding(MODELS[kind](), *[0] * batch, page=page)[1].graph)


def streamed(kind: str, workers: int = 132, batch: int = 1, page: int | None = None) -> Graph:
    return stream(plain(kind, batch, page), machine(workers, streams=True))


# ---- the same numbers


def decoded(
    kind: str, workers: int, streams: bool, steps: int, *starts: int, choices: Choices = UNCHOSEN, page: int | None = None
) -> tuple[list[list[int]], list[torch.Tensor]]:
    """Some tokens of each sequence, and the caches after them."""
    state, section = decoding(MODELS[kind](), *starts, page=page)
    target = replace(machine(workers, streams=streams), choices=choices)
    with mock.patch("mkc.compiler.render"):  # the interpreter needs no page
        run = interpreted([section], target, order=Random(workers))
    run(list(state.tensors), steps=[steps])
    return told(state, steps, starts), [c.double() for c in side_by_side(state)]


def told(state: State, steps: int, starts: Sequence[int]) -> list[list[int]]:
    found = state.told()
    return [found[row, start + 1 : start + 1 + steps].tolist() for row, start in enumerate(starts)]


def exact(kind: str, steps: int, *starts: int) -> tuple[list[list[int]], list[torch.Tensor]]:
    """The same by PyTorch in float64."""
    model = MODELS[kind]()
    state, _ = decoding(model, *starts)
    wide = State(state.words, tuple(c.double() for c in state.caches))
    decode = _Decode if len(starts) == 1 else _DecodeTogether
    step = decode(model.double(), torch.tensor([-1])).eval()
    for _ in range(steps):
        step(*wide.tensors)
    return told(wide, steps, starts), list(wide.caches)


@pytest.mark.parametrize(
    ("kind", "workers", "start"), [*((kind, 5, 62) for kind in MODELS), ("qwen3", 132, 130), ("llama", 16, 0)]
)
def test_a_streamed_plan_is_as_near_to_float64_as_the_plain_one(kind: str, workers: int, start: int) -> None:
    assert_as_near_to_float64(kind, workers, start)


def assert_as_near_to_float64(kind: str, workers: int, *starts: int, choices: Choices = UNCHOSEN) -> None:
    tokens, caches = exact(kind, 3, *starts)
    mine_told, mine = decoded(kind, workers, True, 3, *starts, choices=choices)
    expected, theirs = decoded(kind, 2, False, 3, *starts)
    assert mine_told == expected == tokens
    for got, other, truth in zip(mine, theirs, caches, strict=True):
        own = (other - truth).abs().max()
        assert ((got - truth).abs() <= 2 * own + 2**-7 * truth.abs()).all()


@pytest.mark.parametrize(
    ("kind", "workers", "starts"),
    [
        ("qwen3", 5, (62, 0, 130)),
        ("qwen3, deep", 132, (5, 62)),
        ("llama", 16, (63, 1, 2, 64, 127, 128, 3, 188)),
        ("qwen2", 3, (70, 3)),
        ("gemma", 5, (62, 0, 130)),
        ("olmo2", 5, (62, 130)),  # norms of all heads
        ("starcoder2", 5, (62, 130)),  # biases and layer norms
        ("gemma3", 5, (62, 130)),  # windows
        ("gpt-neox", 5, (62, 130)),  # some dims are turned; a gap from head to head
    ],
)
def test_several_sequences_at_positions_of_their_own_are_as_near(kind: str, workers: int, starts: tuple[int, ...]) -> None:
    assert_as_near_to_float64(kind, workers, *starts)


@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.parametrize(
    ("kind", "workers", "starts"),
    [("qwen3", 5, (62,)), ("qwen3, deep", 132, (5, 129)), ("llama", 16, (63, 1, 2, 64, 127, 128, 3, 184)), ("gemma2", 5, (130,))],
)
def test_pages_change_nothing(kind: str, workers: int, starts: tuple[int, ...], streams: bool) -> None:
    """Of what is known of the caches, either; pages that no sequence has are not numbers."""
    expected, theirs = decoded(kind, workers, streams, 3, *starts)
    tokens, mine = decoded(kind, workers, streams, 3, *starts, page=128)
    assert tokens == expected
    for one, other in zip(mine, theirs, strict=True):
        for row, start in enumerate(starts):
            torch.testing.assert_close(one[row, :, : start + 3], other[row, :, : start + 3], rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize(("page", "streams"), [(128, True), (256, True), (64, False), (100, False)])
@pytest.mark.parametrize("batch", [1, 3])
def test_pages_of_whole_blocks_of_keys_are_streamed(page: int, streams: bool, batch: int) -> None:
    found = [Counter(node.op for node in streamed("qwen3", batch=batch, page=n).nodes) for n in (page, None)]
    found[0].subtract(found[1])
    left = {op: count for op, count in found[0].items() if count and op != "reduce"}  # with which a batch counts who has room
    around = {"elementwise": 2, "gather": 1, "append_pages": 2, "attention": 1, "decode_attention": -1}  # quotients; the lookup
    assert left.items() >= ({} if streams else around).items()
    assert streams == ("append_pages" not in left and "attention" not in left and left.get("gather", 0) == 0)


def test_rows_that_do_not_fit_in_shared_memory_come_in_chunks() -> None:
    with mock.patch("mkc.ops._streaming.MOST_INPUT", 0):
        assert_as_near_to_float64("qwen3", 3, 62, 0, 130)


# ---- prompts

PROMPTS = ([9, 80, 33, 7, 61], [5], [2, 2, 40])


def reading(kind: str, prompts: Sequence[Sequence[int]], *stops: int) -> tuple[State, Raised]:
    """A state in which nothing has been read, and the decoding section."""
    model = MODELS[kind]()
    state = make_state(model, ROOM, 4, len(prompts))
    section = raise_decoding(model, state, stops)
    state.prepare(prompts)
    return state, section


def steps_for(prompts: Sequence[Sequence[int]], count: int) -> int:
    return max(map(len, prompts)) - 1 + count


def answers(state: State, prompts: Sequence[Sequence[int]], count: int, *stops: int) -> list[list[int]]:
    """What follows each prompt, up to the first stop."""
    found = [state.told()[row, len(ids) : len(ids) + count].tolist() for row, ids in enumerate(prompts)]
    return [tokens[: next((i for i, t in enumerate(tokens) if t in stops), count) + 1] for tokens in found]


def by_torch(kind: str, prompts: Sequence[Sequence[int]], count: int, *stops: int) -> list[list[int]]:
    """The same by the model's own `generate`, in float64."""
    model = MODELS[kind]().double()
    asked = [torch.tensor([list(ids)]) for ids in prompts]
    ends: dict[str, Any] = {"eos_token_id": list(stops)} if stops else {}
    told = [model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, **ends) for ids in asked]
    return [t[0, len(ids) :].tolist() for t, ids in zip(told, prompts, strict=True)]


@pytest.mark.parametrize(
    ("kind", "workers", "prompts", "stops"),
    [
        *(("qwen3", 5, [prompt], ()) for prompt in PROMPTS[:2]),
        ("llama", 16, PROMPTS, ()),
        ("qwen3", 5, [PROMPTS[0]], (80, 33)),  # which end answers, and nothing in a prompt
        ("qwen3", 132, PROMPTS, (61, 5, 2)),
    ],
)
def test_the_decoding_section_reads_prompts_and_answers_as_the_model_does(
    kind: str, workers: int, prompts: Sequence[Sequence[int]], stops: tuple[int, ...]
) -> None:
    state, section = reading(kind, prompts, *stops)
    with mock.patch("mkc.compiler.render"):
        run = interpreted([section], machine(workers, streams=True), order=Random(workers))
    run(list(state.tensors), steps=[steps_for(prompts, 4)])
    assert answers(state, prompts, 4, *stops) == by_torch(kind, prompts, 4, *stops)


def test_between_two_steps_there_is_the_choice_and_whether_it_ends() -> None:
    """Of the tasks after the last stream; what else there is waits for neither."""
    for batch in (1, 3):
        tasks = lower(decoding(MODELS["qwen3"](), *[0] * batch)[1].graph, machine(16, streams=True)).tasks
        nodes = tasks.graph.nodes
        last = max(i for i, node in enumerate(nodes) if node.op in STREAMS)
        assert [node.op for node in nodes[last + 1 :]] == ["stream_argmax", "elementwise", "reduce"]
        choice, count, done = nodes[last + 1 :]
        token = next(t for node in nodes if node.op == "gather" and node.path for t in node.inputs if t.storage.kind is Kind.STATE)
        assert choice.output.storage == token.storage
        assert token.storage not in {t.storage for t in count.inputs}
        assert {t.storage for t in done.outputs}.isdisjoint(t.storage for t in count.inputs)


# ---- the shape of the plan


def test_a_layer_is_five_streams(golden: Callable[[str, str], None]) -> None:
    one, two = streamed("qwen3"), streamed("qwen3, deep")
    ops = [Counter(node.op for node in graph.nodes) for graph in (one, two)]
    assert ops[1] - ops[0] == {"stream_linear": 4, "decode_attention": 1}
    assert ops[0]["stream_linear"] == 5  # with the logits
    golden("qwen3.streamed.txt", f"{one}\n")


@pytest.mark.parametrize(
    ("kind", "streams", "others"),
    [
        *((kind, 6, []) for kind in PLAIN),
        ("gemma2", 11, ["stream_norm"] * 3),  # of results, where the residual moves in; the last one is for the logits alone
        ("gemma3", 6, ["stream_norm"]),
        ("olmo2", 6, ["stream_norm"] * 3),  # of all heads together, too
        ("olmo", 6, ["layer_norm"] * 3 + ["elementwise"] * 2),
        ("gpt2", 6, ["gather"]),  # of what stands for the position
        ("llama, odd heads", 5, ["rotary", "rotary", "append", "append", "attention"]),
    ],
)
def test_what_is_not_understood_stays_as_it_is(kind: str, streams: int, others: list[str]) -> None:
    ops = Counter(node.op for node in streamed(kind).nodes)
    around = Counter({"gather": 2, "elementwise": 2 if kind == "gpt2" else 4, "stream_argmax": 1, "append": 1, "reduce": 1})
    assert sum(ops[op] for op in STREAMS) == streams
    assert ops - around - Counter({op: ops[op] for op in STREAMS}) == Counter(others)


@pytest.mark.parametrize("batch", [2, 16])
@pytest.mark.parametrize("kind", sorted({*MODELS} - {"olmo2", "glm4"}))
def test_several_sequences_stream_as_one_does(kind: str, batch: int) -> None:
    """But for norms that move the residual in, of one row, and for parts of attention, which a node of its own merges."""
    found = [n for n in streamed(kind, batch=batch).nodes if n.op.startswith(("stream", "decode"))]
    one, several = Counter(n.op for n in streamed(kind).nodes if n.op.startswith(("stream", "decode"))), Counter(n.op for n in found)
    merges = sum(n.op == "decode_attention" and splits(n) > 1 for n in found)
    assert one - Counter(stream_norm=one["stream_norm"]) == several - Counter(stream_merge=merges)
    assert several["stream_merge"] == merges
    assert (one["stream_norm"] > 0) == (kind in ("gemma2", "gemma3"))


def test_a_row_that_leaves_no_room_for_a_ring_is_not_streamed() -> None:
    graph = fuse(raised(nn.Linear(32768, 8, bias=False, dtype=torch.bfloat16), torch.randn(1, 32768, dtype=torch.bfloat16)).graph)
    wide = machine(4, streams=True)
    assert [n.op for n in stream(graph, wide).nodes] == ["stream_linear"]
    assert stream(graph, replace(wide, scratch_bytes=99 << 10)) == graph


def test_streams_take_in_norms_that_move_the_residual_in(golden: Callable[[str, str], None]) -> None:
    """And the worker that makes such a norm for others does so when the stream has all that it waits for."""
    streams = [node for node in streamed("gemma2").nodes if node.op in ("stream_linear", "stream_norm")]
    kinds = ["norm" if n.op == "stream_norm" else "taking" if n["post_eps"] else "plain" for n in streams]
    first = ["plain", "plain", "taking", "norm", "plain"]
    second = ["taking", "norm", "plain", "taking", "norm", "plain"]
    assert kinds == [*first, *second, "taking"]
    golden("gemma3.streamed.txt", f"{streamed('gemma3')}\n")


def test_streams_poll_what_streams_publish() -> None:
    graph = streamed("qwen3, deep")
    made = [t.storage for node in graph.nodes if node.op in STREAMS for t in node.outputs]
    assert {s for s in made if s.kind is not Kind.STATE} == {s for s in graph.storages if s.kind is Kind.WORDS}
    assert not any(s.kind is Kind.WORDS for s in plain("qwen3").storages)


def test_the_splits_of_a_head_do_not_wait_for_each_other() -> None:
    lowering = lower(decoding(MODELS["qwen3"]())[1].graph, machine(16, streams=True))
    tasks = lowering.tasks
    number = next(i for i, node in enumerate(tasks.graph.nodes) if node.op == "decode_attention")
    mine = range(tasks.first[number], tasks.first[number + 1])
    assert len(mine) == 2 * 2
    assert all(hi <= mine.start for t in mine for _, hi in lowering.linked.before[t])


@pytest.mark.parametrize("workers", [3, 16, 132])
def test_a_share_of_a_stream_always_runs_on_the_same_worker(workers: int) -> None:
    lowering = lower(decoding(MODELS["llama"]())[1].graph, machine(workers, streams=True))
    tasks, owner = lowering.tasks, {t: w for w, queue in enumerate(lowering.schedule.queues) for t in queue}
    for number, node in enumerate(tasks.graph.nodes):
        mine = range(tasks.first[number], tasks.first[number + 1])
        if node.op in STREAMS:
            assert [owner[t] for t in mine] == [i * workers // len(mine) for i in range(len(mine))]


@pytest.mark.parametrize(
    ("layout", "wide"),
    [
        (contiguous((3, 8)), Layout((3, 8), (20, 1))),
        (Layout((3, 2, 4), (8, 4, 1)), Layout((3, 2, 4), (20, 4, 1))),
        (Layout((2, 1, 4), (8, 0, 1), 12), Layout((2, 1, 4), (20, 0, 1), 24)),
        (Layout((6, 4), (4, 1)), None),  # runs on from row to row
        (Layout((3, 8), (8, 1), 4), None),
    ],
)
def test_views_of_joined_rows_keep_their_elements_or_nothing_is_joined(layout: Layout, wide: Layout | None) -> None:
    assert widened(layout, 8, 20) == wide


# ---- what must not be taken in


class Rows(nn.Module):
    def __init__(self, names: str, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(64, eps=1e-5, dtype=dtype)
        for name in names:
            setattr(self, name, nn.Linear(64, 64, bias=False, dtype=dtype))


class SharedNorm(Rows):
    """The normalised row is also handed back."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.norm(x)
        return self.a(y), y


class SharedGate(Rows):
    """The gate is also handed back."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gate = torch.sigmoid(self.a(x))
        return gate * self.b(x), gate


def ops(graph: Graph) -> list[str]:
    """Of the streamed graph; a product says how many weights it has."""
    nodes = stream(graph, machine(4, streams=True)).nodes
    return [f"{n.op}{n['weights'] if n.op == 'stream_linear' else ''}" for n in nodes]


def ops_of(model: nn.Module, x: torch.Tensor) -> list[str]:
    return ops(fuse(raised(model, x).graph))


def row(dtype: torch.dtype = torch.bfloat16, rows: int = 1) -> torch.Tensor:
    return torch.randn(rows, 64, dtype=dtype)


class Biased(nn.Module):
    """So many products of one row, each with a bias."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.all = nn.ModuleList(nn.Linear(64, 64, dtype=torch.bfloat16) for _ in range(count))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [torch.softmax(layer(x), -1) for layer in self.all]


def test_products_with_biases_are_joined_as_far_as_a_task_has_operands() -> None:
    assert [op for op in ops_of(Biased(3), row()) if "stream" in op] == ["stream_linear3"]
    assert [op for op in ops_of(Biased(11), row()) if "stream" in op] == ["stream_linear8", "stream_linear3"]


class FusedGate(nn.Module):
    """Both halves of one product, one of which gates the other."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Linear(64, 128, dtype=torch.bfloat16)
        self.down = nn.Linear(64, 64, bias=False, dtype=torch.bfloat16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.both(x).chunk(2, -1)
        return self.down(torch.sigmoid(gate) * up)


def test_halves_of_one_product_may_gate_each_other() -> None:
    assert ops_of(FusedGate(), row()) == ["stream_linear2", "stream_linear1"]


def test_a_norm_or_a_gate_that_others_read_stays() -> None:
    assert ops_of(SharedNorm("a"), row()) == ["rms_norm", "stream_linear1"]
    assert ops_of(SharedGate("ab"), row()) == ["stream_linear1", "stream_linear1"]


class Sandwich(Rows):
    """A residual, and a norm of what is added to it. The sum is normalised, and read by what `others` say."""

    def __init__(self, others: str, norm: type[nn.Module] = nn.RMSNorm) -> None:
        super().__init__("abc")
        self.after, self.others = nn.RMSNorm(64, eps=1e-5, dtype=torch.bfloat16), others
        self.norm = norm(64, eps=1e-5, dtype=torch.bfloat16)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        h = x + self.after(self.a(x))
        y = torch.relu(self.b(self.norm(h)))
        match self.others:
            case "none":
                return (y,)
            case "residual":
                return (self.c(y) + h,)
            case _:
                return y, self.c(h)


@pytest.mark.parametrize(
    ("others", "found"),
    [
        ("none", ["stream_linear1"] * 2),
        ("residual", ["stream_linear1", "stream_linear1", "stream_norm", "stream_linear1"]),
        ("product", ["stream_linear1", "stream_norm", "stream_linear1", "stream_linear1"]),  # which would wait for it
    ],
)
def test_a_norm_moves_the_residual_into_a_stream_unless_another_would_wait(others: str, found: list[str]) -> None:
    graph = fuse(raised(Sandwich(others), row()).graph)
    nodes = stream(graph, machine(4, streams=True)).nodes
    assert ops(graph) == found
    assert sum(n.op == "stream_linear" and n["post_eps"] > 0 for n in nodes) == (others != "product")


def test_a_residual_moves_into_rms_norms_of_one_row_that_registers_hold() -> None:
    kept = ["stream_linear1", "stream_norm", "stream_linear1"]
    assert ops_of(Sandwich("none", nn.LayerNorm), row()) == kept
    with mock.patch("mkc.passes._stream_norms.DEEPEST", 63):
        assert ops_of(Sandwich("none"), row()) == kept
    assert "rms_norm" in ops_of(Sandwich("none"), row(rows=2))


def test_only_a_few_rows_of_bfloat16_are_streamed() -> None:
    assert ops_of(SharedNorm("a"), row(rows=16)) == ["rms_norm", "stream_linear1"]
    assert ops_of(SharedNorm("a"), row(rows=17)) == ["rms_norm", "linear"]
    assert ops_of(SharedNorm("a", torch.float32), row(torch.float32)) == ["rms_norm", "linear"]


@pytest.mark.parametrize(("rows", "streams"), [(4, True), (400, False)])
def test_a_graph_streams_where_streams_move_most_of_its_bytes(rows: int, streams: bool) -> None:
    b = Builder()
    x, w = b.input("x", (1, 64), DType.BF16), b.input("w", (64, 64), DType.BF16, Kind.PARAM)
    large = b.input("large", (rows, 64), DType.F32, Kind.STATE)
    b.append("elementwise", (large,), (large,), expr=Call("neg", (Arg(0),)))
    graph = b.finish((b.emit("linear", (x, w), (1, 64), DType.BF16, epilogue=Arg(0)),))
    assert ops(graph) == ["elementwise", "stream_linear1" if streams else "linear"]


@pytest.mark.parametrize("changes", [False, True])
def test_products_of_a_row_that_changes_in_between_stay_apart(changes: bool) -> None:
    b = Builder()
    x, *weights = (
        b.input(name, shape, DType.BF16, kind)
        for name, shape, kind in (("x", (1, 64), Kind.STATE), ("a", (64, 64), Kind.PARAM), ("b", (64, 64), Kind.PARAM))
    )
    first = b.emit("linear", (x, weights[0]), (1, 64), DType.BF16, epilogue=Arg(0))
    if changes:
        b.append("elementwise", (x,), (x,), expr=Call("neg", (Arg(0),)))
    then = b.emit("linear", (x, weights[1]), (1, 64), DType.BF16, epilogue=Arg(0))
    b.append("softmax", (first, then), (x,))  # whatever reads both
    together = ["stream_linear1", "elementwise", "stream_linear1"] if changes else ["stream_linear2"]
    assert ops(b.finish(())) == [*together, "softmax"]


def test_a_cache_that_others_read_is_left_alone() -> None:
    graph = plain("qwen3")
    append = next(node for node in graph.nodes if node.op == "append" and node.output.dtype is DType.BF16)
    flag = next(t for t in graph.inputs if t.dtype is DType.BOOL)
    peek = Node("peek", "reduce", (append.output,), (flag,), (("expr", Arg(0)), ("fold", "maximum"), ("epilogue", Arg(0))))
    assert "decode_attention" in ops(graph)
    assert "decode_attention" not in ops(replace(graph, nodes=(*graph.nodes, peek)))
