"""Pages of the examples and of every operator compile, here, without a GPU: by NVRTC for each of them, by nvcc, and by g++."""

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers

import mkc
from mkc.compiler import compile_graphs
from mkc.explain import looked_at
from mkc.frontend.decoding import make_state, raise_decoding
from mkc.ir.graph import Graph
from mkc.paths import TEMPLATES
from mkc.targets import cpu, cuda, nvrtc

EXAMPLES = Path(__file__).parents[2] / "examples"
REPORTING = 24  # bytes of a `Fault`, for a body that is called
TAKEN = {  # what compute warps keep from task to task; and talking warps, of norms
    "pool of pages": (0, REPORTING),
    "norms of all heads 2 in bfloat16": (44, 24),
}


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name.replace("/", "_"), EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # whose code is traced by its module's name
    spec.loader.exec_module(module)
    return module


def traced(model: Any, *inputs: torch.Tensor) -> list[Graph]:
    (made,), _ = looked_at(model, inputs)
    return [section.graph for section in made.sections]


def elementwise() -> list[Graph]:
    return traced(example("01_elementwise").swish_blend, torch.randn(300, 250), torch.randn(300, 250), torch.randn(250))


def mlp() -> list[Graph]:
    return traced(example("02_mlp").MLP(256, 1000).eval(), torch.randn(2, 256))


def attention() -> list[Graph]:
    return traced(example("03_attention").Attention().eval(), torch.randn(1, 40, 256))


def others() -> list[Graph]:
    """What the examples have no use for; the keys are so many that attention is split."""

    def model(x: torch.Tensor, w: torch.Tensor, keys: torch.Tensor) -> tuple[torch.Tensor, ...]:
        scores = torch.softmax(x @ w, -1)
        return scores.mean(-1), F.scaled_dot_product_attention(scores[None], keys, keys)

    return traced(model, torch.randn(2, 1, 96), torch.randn(2, 96, 64), torch.randn(1, 2, 4096, 64))


def pool_of_pages() -> list[Graph]:
    def model(q: torch.Tensor, new: torch.Tensor, pool: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        pool[table[0] // 2, :, table[0] % 2] = new
        keys = pool[table].transpose(1, 2).flatten(2, 3)
        return F.scaled_dot_product_attention(q, keys, keys)

    return traced(model, torch.randn(1, 2, 1, 64), torch.randn(40, 2, 64), torch.randn(50, 2, 64, 64), torch.arange(40)[None])


def adder(dtype: torch.dtype) -> Callable[[], list[Graph]]:
    def graphs() -> list[Graph]:
        lm = mkc.CausalLM.from_pretrained(str(EXAMPLES / "adder" / "model"), dtype=dtype, max_length=32)
        return [section.graph for section in lm.compilation.sections]

    return graphs


def decoding(kind: str, batch: int = 1, page: int | None = None, room: int = 64, **changes: Any) -> Callable[[], list[Graph]]:
    """A step that streams on sm_90a, where it has a kernel of its own."""

    def graphs() -> list[Graph]:
        sizes = dict(
            vocab_size=512, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=64, max_position_embeddings=256,
        )  # fmt: skip
        config = getattr(transformers, f"{kind}Config")(**(sizes | changes))
        model = transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16).eval()
        return [raise_decoding(model, make_state(model, room, 4, batch, page), ()).graph]

    return graphs


MADE = {
    "01_elementwise": elementwise,
    "02_mlp": mlp,
    "03_attention": attention,
    "others": others,
    "pool of pages": pool_of_pages,
    "adder float32": adder(torch.float32),
    "adder bfloat16": adder(torch.bfloat16),
    "decoding bfloat16": decoding("Qwen3"),
    "decoding 3 in bfloat16": decoding("Qwen3", 3, room=256),  # whose parts are merged
    "decoding in pages bfloat16": decoding("Qwen3", page=128),
    "decoding 3 in pages bfloat16": decoding("Qwen3", 3, 128),
    "windows, wide heads in pages bfloat16": decoding("Gemma3Text", page=128, head_dim=256, sliding_window=20, hidden_size=1152),
    "windows, wide heads bfloat16": decoding("Gemma3Text", head_dim=256, sliding_window=20, hidden_size=1152),
    "windows, wide heads 2 in bfloat16": decoding("Gemma3Text", 2, head_dim=256, sliding_window=20, hidden_size=1152),
    "narrow heads bfloat16": decoding("Olmo2", head_dim=48, num_attention_heads=9, num_key_value_heads=3, hidden_size=576),
    "norms of all heads 2 in bfloat16": decoding("Olmo2", 2),
    "biases, layer norms bfloat16": decoding(
        "Starcoder2", vocab_size=511, num_attention_heads=12, num_key_value_heads=1, head_dim=32, hidden_size=384
    ),
    "partly turned heads bfloat16": decoding("GPTNeoX", num_key_value_heads=4),
}


@cache
def graphs_of(name: str) -> list[Graph]:
    return MADE[name]()


def _is_much_alike(name: str, arch: str) -> bool:
    """Whether other pages and architectures show what there is to see: NVRTC takes 20 s for one of these."""
    if name == "pool of pages":
        return arch not in ("sm_80", "sm_90a", "sm_120a")
    return name == "adder float32" and arch in ("sm_87", "sm_103a", "sm_121a")


@pytest.mark.parametrize(
    ("name", "arch"),
    [
        pytest.param(name, arch, marks=pytest.mark.slow if _is_much_alike(name, arch) else ())
        for name in MADE
        for arch in cuda.ARCHITECTURES
        if "bfloat16" not in name or arch == "sm_90a"
    ],
)
def test_the_page_of_an_example_compiles(name: str, arch: str) -> None:
    made = compile_graphs(graphs_of(name), cuda.target(arch=arch))
    resources = nvrtc.compile_cubin(made.source.complete, arch).resources
    assert resources.registers > 0
    if arch == "sm_90a":
        assert (resources.spill_bytes, resources.stack_bytes) == TAKEN.get(name, (0, 0))


def test_the_pages_hold_every_operator() -> None:
    made = [compile_graphs(graphs_of(name), cuda.target(arch="sm_90a")) for name in MADE]
    held = {body.header for compilation in made for body in compilation.program.bodies}
    assert held == {path.stem for path in (TEMPLATES / "mkc/ops").iterdir()}


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc")
@pytest.mark.parametrize("arch", ["sm_90a", "sm_80"])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if "adder" in name or "s bfloat16" in name else ()) for name in MADE]
)
def test_the_complete_page_of_a_gpu_compiles_with_nvcc(name: str, arch: str, tmp_path: Path) -> None:
    made = compile_graphs(graphs_of(name), cuda.target(arch=arch))
    compiles(made.source.complete, tmp_path / "page.cu", "nvcc", "-std=c++20", *exactly(arch), "-c", "-o", str(tmp_path / "page.o"))


@pytest.mark.parametrize("name", MADE)
def test_the_complete_page_of_the_host_compiles_on_its_own(name: str, tmp_path: Path) -> None:
    made = compile_graphs(graphs_of(name), cpu.target(workers=4))
    compiles(made.source.complete, tmp_path / "page.cpp", cpu.compiler(), "-std=c++20", "-march=native", "-fsyntax-only")


def exactly(arch: str) -> tuple[str, ...]:
    """What `-arch` leaves out of sm_90a: the instructions of just that machine."""
    return (f"-gencode=arch=compute_{arch.removeprefix('sm_')},code={arch}",)


def compiles(page: str, path: Path, *command: str) -> None:
    path.write_text(page)
    done = subprocess.run([*command, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[:4000]


def test_nothing_that_a_kernel_writes_is_read_through_the_read_only_path() -> None:
    """ld.global.nc may give old values: see docs/device-protocol.md."""
    made = compile_graphs(graphs_of("adder float32"), cuda.target(arch="sm_90a"))
    assert ".nc" not in nvrtc.ptx(made.source.complete, "sm_90a")
