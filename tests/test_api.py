"""The user's side: what `mkc.compile` takes, gives, keeps and refuses."""

import copy
import dataclasses
import shutil
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import mkc
from mkc import targets
from mkc.frontend.dynamo import backend
from mkc.targets import cpu


class Residual(nn.Module):
    """Counts its calls in a buffer; with `running` a call in the middle that mkc does not claim."""

    def __init__(self, running: bool = False) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(100, 250), nn.Linear(250, 100)
        self.register_buffer("calls", torch.zeros(()))
        self.running = running

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        self.calls.add_(1)
        hidden = F.gelu(self.up(x))
        if self.running:
            hidden = hidden.cumsum(-1)
        return {"y": self.down(hidden) + x, "calls": self.calls * 2}


@pytest.fixture(autouse=True)
def _no_grad() -> Any:
    with torch.no_grad():
        yield


def same(got: Any, expected: Any) -> None:
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize("policy", ["static", "dynamic"])
def test_an_instance_runs_as_in_pytorch_and_keeps_its_buffers(running: bool, policy: str) -> None:
    model = Residual(running).eval()
    reference, x = copy.deepcopy(model), torch.randn(3, 100)
    fast = mkc.compile(model, x, policy=policy, workers=3)
    assert model.calls == 0  # compiling is not running
    for _ in range(3):
        same(fast(x), reference(x))
        assert model.calls == reference.calls


def test_a_class_is_decorated_and_keeps_its_name_and_parameters() -> None:
    @mkc.compile(workers=2)
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x).relu()

    net, x = Net().eval(), torch.randn(2, 8)
    same(net(x), net.layer(x).relu())
    assert Net.__name__ == "Net"
    assert len(list(net.parameters())) == 2
    assert "Linear" in net.mkc.source


def test_a_function_is_compiled_at_its_first_call_for_each_shape() -> None:
    fast = mkc.compile(lambda a, b: (a @ b).tanh())
    for n in (3, 5):
        a, b = torch.randn(n, 7), torch.randn(7, n)
        same(fast(a, b), (a @ b).tanh())


def test_parameters_changed_in_place_or_replaced_are_seen() -> None:
    layer, x = nn.Linear(8, 8).eval(), torch.randn(2, 8)
    fast = mkc.compile(layer, x)
    layer.weight.mul_(2)
    same(fast(x), layer(x))
    layer.weight.data = torch.randn(8, 8)
    same(fast(x), layer(x))


def test_tied_weights_are_bound_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x).relu())

    model, x = Tied().eval(), torch.randn(2, 8)
    fast = mkc.compile(model, x)
    same(fast(x), model(x))
    assert sum(slot.kind.value == "param" for slot in fast.compilation.program.slots) == 1


def test_inputs_written_in_place_are_written_in_the_callers_memory() -> None:
    def step(cache: torch.Tensor, at: torch.Tensor, row: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        cache.index_copy_(0, at, row)
        at.add_(1)
        return cache.sum(0), at

    fast = mkc.compile(step)
    ours, theirs = ([torch.zeros(8, 4), torch.zeros(1, dtype=torch.int64)] for _ in range(2))
    for _ in range(3):
        row = torch.randn(1, 4)
        same(fast(*ours, row), step(*theirs, row))
        same(ours, theirs)


def test_two_inputs_can_be_swapped_and_the_callers_own_tensor_comes_back() -> None:
    def swap(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        kept = a.clone()
        a.copy_(b)
        b.copy_(kept)
        return a

    a, b = torch.randn(5), torch.randn(5)
    old = a.clone(), b.clone()
    result = mkc.compile(swap)(a, b)
    assert result is a
    same((b, a), old)


def test_what_is_read_before_an_input_changes_keeps_its_old_value() -> None:
    def forward(c: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        old = c * 2
        c.add_(k)
        return old, c.T

    c, k = torch.randn(3, 3), torch.randn(3, 3)
    expected = c * 2, (c + k).T
    same(mkc.compile(forward)(c, k), expected)


def test_integers_and_truths_are_exact() -> None:
    def forward(i: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return i * 2 + 1, i > 3, torch.where(b, i, -i), i.sum(), i / 3, i.to(torch.int32) * 100000 * 30000, b & (i > 2), ~b

    i, b = torch.randint(0, 10, (3, 4)), torch.rand(3, 4) > 0.5
    for got, expected in zip(mkc.compile(forward)(i, b), forward(i, b), strict=True):
        assert got.dtype == expected.dtype
        assert torch.equal(got, expected)


def test_scattered_inputs_are_taken_as_they_are_meant() -> None:
    x = torch.randn(6, 4).T
    same(mkc.compile(lambda t: t * 2 + t.sum(0))(x), x * 2 + x.sum(0))


def test_torch_compile_finds_the_backend_and_shapes_may_change() -> None:
    model = Residual(running=True).eval()
    reference = copy.deepcopy(model)
    torch._dynamo.reset()
    fast = torch.compile(model, backend=backend)
    for rows in (3, 5, 6):
        x = torch.randn(rows, 100)
        same(fast(x), reference(x))


def test_the_backend_runs_where_it_is_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, x = torch.fx.symbolic_trace(nn.ReLU().eval()), torch.randn(3)
    same(backend(graph, [x], options={"target": targets.named("cpu", workers=2)})(x), x.relu())
    with pytest.raises(mkc.InputError, match="target 'cuda' cannot run"):
        backend(graph, [x], options={"target": "cuda"})
    monkeypatch.setenv("MKC_TARGET", "cuda")
    with pytest.raises(mkc.InputError, match="target 'cuda' cannot run"):
        backend(graph, [x])


def test_what_nobody_claims_is_reported_and_can_be_refused() -> None:
    model, x = Residual(running=True).eval(), torch.randn(3, 100)
    fast = mkc.compile(model, x)
    (fallback,) = fast.fallbacks
    assert "torch.cumsum" in str(fallback)
    with pytest.raises(mkc.UnsupportedError, match=r"torch\.cumsum.*fallback=\"error\""):
        mkc.compile(model, x, fallback="error")


def test_a_refusal_names_the_module_path() -> None:
    class Inner(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.cumsum(-1)

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([Inner()])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layers[0](x) * 2

    with pytest.raises(mkc.UnsupportedError, match=r"at layers\.0"):
        mkc.compile(Outer().eval(), torch.randn(3), fallback="error")


BAD = {
    "another shape": (lambda f, x: f(torch.randn(4, 100)), r"float32\[4, 100\].*compiled for float32\[3, 100\]"),
    "another dtype": (lambda f, x: f(x.double()), r"float64\[3, 100\]"),
    "too many inputs": (lambda f, x: f(x, x), "expected 1 inputs"),
    "no inputs": (lambda f, x: f(), "expected 1 inputs"),
}


@pytest.mark.parametrize("case", BAD)
def test_wrong_inputs_are_refused_with_what_was_expected(case: str) -> None:
    x = torch.randn(3, 100)
    fast = mkc.compile(Residual().eval(), x)
    call, message = BAD[case]
    with pytest.raises(mkc.InputError, match=message):
        call(fast, x)
    fast(x)  # still usable


def test_training_mode_and_gradients_are_refused() -> None:
    model, x = Residual(), torch.randn(3, 100)
    with pytest.raises(mkc.ModelError, match="training mode"):
        mkc.compile(model, x)
    with torch.enable_grad(), pytest.raises(mkc.ModelError, match="requires grad"):
        mkc.compile(model.eval())(x.requires_grad_())


@pytest.mark.parametrize("options", [{"polcy": "static"}, {"policy": "fast"}, {"workers": 0}, {"target": "tpu"}, {"fallback": ""}])
def test_unknown_options_and_values_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(mkc.OptionError):
        mkc.compile(Residual().eval(), **options)


def test_a_result_may_depend_on_no_input() -> None:
    fast = mkc.compile(lambda x: torch.arange(5) * 2)
    for _ in range(2):
        same(fast(torch.zeros(1)), torch.arange(5) * 2)


def test_an_input_that_is_only_read_may_be_passed_twice() -> None:
    x = torch.randn(5)
    same(mkc.compile(lambda a, b: a * b + a)(x, x), x * x + x)


def test_a_state_that_is_passed_twice_is_refused() -> None:
    def add(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        a.add_(b)
        return a * b

    x = torch.randn(5)
    with pytest.raises(mkc.InputError, match="share memory"):
        mkc.compile(add)(x, x)


def test_a_state_that_lies_inside_an_input_is_refused_whatever_else_lies_there() -> None:
    """In the order of addresses `short` stands between the two that must not share memory."""

    def advance(long: torch.Tensor, short: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        state.add_(1)
        return long.sum() + short.sum() + state.sum()

    memory = torch.zeros(100)
    with pytest.raises(mkc.InputError, match="in0 and in2 share memory"):
        mkc.compile(advance)(memory, memory[8:12], memory[40:48])


def test_control_flow_on_values_is_refused_with_a_sentence() -> None:
    with pytest.raises(mkc.ModelError, match="cannot trace"):
        mkc.compile(lambda x: x * 2 if x.sum() > 0 else x)(torch.randn(3))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_a_clear_error() -> None:
    with pytest.raises(mkc.MkcError):
        mkc.compile(Residual().eval(), torch.randn(3, 100), target="cuda")


def test_a_missing_compiler_is_a_clear_error_and_the_process_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(3, 7)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(mkc.TargetError, match="no-such-compiler"):
        mkc.compile(lambda t: t.exp() * 3.25, x)
    monkeypatch.delenv("CXX")
    same(mkc.compile(lambda t: t.exp() * 3.25, x)(x), x.exp() * 3.25)


def test_an_input_shifted_onto_itself_is_read_before_it_is_written() -> None:
    def shift(cache: torch.Tensor) -> torch.Tensor:
        cache[1:9] = cache[:8].clone()
        return cache + 0

    cache = torch.randn(40, 3)
    expected = cache.clone()
    shift(expected)
    cheap = dataclasses.replace(targets.named("cpu", workers=5), task_ns=1.0, event_ns=1.0)
    same(mkc.compile(shift, target=cheap)(cache), expected)


def test_compositions_of_torchs_own_modules_are_traced_symbolically(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mkc.frontend.trace._export", None)
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU(inplace=True), nn.LayerNorm(4))).eval(), torch.randn(2, 4)
    fast = mkc.compile(model, x)
    same(fast(x), model(x))
    assert {node.path for node in fast.graph.nodes} == {"0", "1.0", "1.1"}


@pytest.mark.skipif(shutil.which("clang++") is None, reason="there is no clang++")
def test_clang_builds_pages_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "clang++")
    def attend(t: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(t, t, t)

    x, model = torch.randn(3, 70), nn.Sequential(nn.LayerNorm(70), nn.Linear(70, 5), nn.GELU()).eval()
    same(mkc.compile(model, x)(x), model(x))
    same(mkc.compile(lambda t: (t * 0.17).half() + 5, x)(x), (x * 0.17).half() + 5)
    rows = torch.randn(1, 2, 9, 16)
    same(mkc.compile(attend, rows)(rows), attend(rows))


def test_a_compiler_that_is_too_old_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_version", lambda _: "Ubuntu clang version 11.0.1")
    with pytest.raises(mkc.TargetError, match="clang 11; the CPU target needs"):
        cpu.compiler()


def test_a_model_that_was_not_planned_to_loop_is_not_repeated() -> None:
    x = torch.randn(3)
    fast = mkc.compile(lambda t: t * 2, x)
    with pytest.raises(mkc.InputError, match="more than one step"):
        fast._latest((x,), steps=[2])


def test_the_task_graph_can_be_analysed_with_networkx() -> None:
    fast = mkc.compile(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)).eval(), torch.randn(2, 8))
    graph = fast.to_networkx()
    assert len(graph) == len(fast.tasks.tasks.tasks)
    assert list(graph.edges) == [(0, 1)]


def test_the_graph_of_operators_can_be_analysed_with_networkx() -> None:
    fast = mkc.compile(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)).eval(), torch.randn(2, 8))
    graph = fast.graph.to_networkx()
    assert [op for _, op in graph.nodes(data="op")] == ["linear", "elementwise", "linear"]
    assert [nbytes for *_, nbytes in graph.edges(data="nbytes")] == [64, 64]


SHARED = torch.nn.Linear(4, 4).requires_grad_(False)


def uses_a_global(x: torch.Tensor) -> torch.Tensor:
    return SHARED(x).relu()


def test_a_function_may_use_modules_that_it_finds_around_itself() -> None:
    layer, x = torch.nn.Linear(4, 4).requires_grad_(False), torch.randn(2, 4)

    def uses_its_closure(x: torch.Tensor) -> torch.Tensor:
        return layer(x).relu()

    for function in (uses_a_global, uses_its_closure):
        torch.testing.assert_close(mkc.compile(function, x)(x), function(x))
