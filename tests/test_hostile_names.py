"""Names of functions, classes, modules and tensors are the user's: none of them gets into the code, or out of a comment or a tag."""

import json
import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import machine
from torch import nn
from typer.testing import CliRunner

import mkc
from mkc.cli import app
from mkc.compiler import Compilation, compile_graphs
from mkc.errors import MkcError
from mkc.inspect import timeline
from mkc.inspect.picture import picture
from mkc.inspect.stages import write_stages
from mkc.ir.builder import Builder
from mkc.ir.dtype import DType
from mkc.ir.expr import Arg, Call
from mkc.ir.graph import Kind
from mkc.ir.program import STAMP
from mkc.passes.render import comment
from mkc.targets import cpu, cuda, nvrtc

HOSTILE = [
    "a\n#error injected\n",
    "a\r#error injected",
    "ends in a backslash\\",
    "ends in a trigraph??/",
    "*/ #error /* injected",
    'a"; system("true"); "',
    "a\u2028#error injected\u2029\u0085#error\x0b\x0c\x1c",
    "\u202e\u2066 runs backwards \u2069",
    "</script><script>alert(1)</script>",
    "<svg onload=alert(1)>&amp;]]>",
    "{{ 7 * 7 }}{% raw %}",
    "\x00\x01\x1b[31m\x7f\ufffe",
    "../../../etc/passwd",
    "@LAUNDRY@%n%s$(true)`true`",
    "ünïcödé 名前",
]
hostile = pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))


def compiled(name: str, target: str = "cpu") -> Compilation:
    """relu(W x), with everything that has a name called `name`."""
    b = Builder(name)
    b.path, b.dtype = name, DType.F32
    x, w = b.input(f"in{name}", (3, 96), DType.F32), b.input(f"self.{name}", (96, 96), DType.F32, Kind.PARAM)
    y = b.emit("linear", (x, w), (3, 96), DType.F32, epilogue=Call("relu", (Arg(0),)))
    return compile_graphs([b.finish((y,))], machine(3) if target == "cpu" else cuda.target(arch=target))


def assert_the_same_but_for_comments(page: str, harmless: str) -> None:
    ours, theirs = page.split("\n"), harmless.split("\n")
    assert len(ours) == len(theirs)
    for line, other in zip(ours, theirs, strict=True):
        assert line == other or re.fullmatch(r"// [\w .,:;<>()\[\]{}=+*%#@!'|&-]*", line)
    assert len(page.splitlines()) == len(harmless.splitlines())  # by any separator there is


@hostile
@pytest.mark.parametrize("target", ["cpu", "sm_90a"])
def test_a_page_differs_in_a_comment_only(name: str, target: str) -> None:
    assert_the_same_but_for_comments(compiled(name, target).source.complete, compiled("model", target).source.complete)


@hostile
def test_a_target_of_any_name_stands_in_a_comment_only(name: str) -> None:
    graphs = [section.graph for section in compiled("model").sections]
    pages = [compile_graphs(graphs, replace(machine(3), arch=arch)).source.complete for arch in (name, "any")]
    assert_the_same_but_for_comments(*pages)


@given(st.text())
def test_nothing_ends_a_comment(name: str) -> None:
    made = comment(name)
    assert len(f"x{made}".splitlines()) == 1
    assert not re.search(r"[\\/\"\x00-\x1f]|\?\?", made)


def test_pages_with_hostile_names_compile() -> None:
    name = "".join(HOSTILE)
    cpu.build(compiled(name).source.complete, cpu.FLAGS)
    pytest.importorskip("cupy")
    nvrtc.compile_cubin(compiled(name, "sm_90a").source.complete, "sm_90a")


@hostile
def test_a_model_of_any_name_computes_what_it_should(name: str) -> None:
    """A function, a class and its modules. A name that torch itself refuses is a sentence."""
    layer = nn.Linear(4, 4).requires_grad_(False)

    def function(x: torch.Tensor) -> torch.Tensor:
        return (x @ x.T).relu()

    function.__name__ = name
    x = torch.randn(2, 4)
    fast = mkc.compile(function, x, workers=2)
    assert torch.allclose(fast(x), function(x), atol=1e-5)
    assert_the_same_but_for_comments(fast.source, mkc.compile(lambda x: (x @ x.T).relu(), x, workers=2).source)
    model = nn.Sequential()
    model.__class__ = type(name.replace("\0", ""), (nn.Sequential,), {})
    if "." in name:  # which torch itself refuses
        return
    model.add_module(name, layer)
    with suppress(MkcError):
        assert torch.allclose(mkc.compile(model.eval(), x, workers=2)(x), layer(x), atol=1e-5)


@hostile
def test_pictures_and_timelines_stay_what_they_are(name: str) -> None:
    made = compiled(name)
    stamps = np.zeros(len(made.program.tasks), STAMP)
    stamps["task"], stamps["ready"], stamps["done"] = np.arange(len(stamps)), 5, 10
    drawn = picture(made.sections[0])
    tags = {element.tag.rpartition("}")[2] for element in ET.fromstring(drawn).iter()}
    assert tags <= {"svg", "style", "g", "rect", "text", "path", "title"}
    page = timeline.html(stamps, made.program, title=name)
    assert page.count("<script") == timeline.html(stamps, made.program).count("<script") == page.count("</script>")
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert json.loads(data)["title"] == name
    json.loads(timeline.perfetto(stamps, made.program))


@hostile
def test_files_stay_in_their_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = tmp_path / "dump"
    monkeypatch.setenv("MKC_DUMP", str(inside))
    x = torch.randn(2, 4)

    def function(x: torch.Tensor) -> torch.Tensor:
        return x.relu()

    function.__name__ = name
    mkc.compile(function, x, workers=1)
    (folder,) = inside.iterdir()
    assert {path.parent for path in write_stages(compiled(name), folder)} == {folder}
    assert [path.name for path in tmp_path.iterdir()] == ["dump"]


@hostile
def test_the_command_line_refuses_a_model_of_any_name(name: str) -> None:
    done = CliRunner().invoke(app, ["explain", "--", name])
    assert done.exit_code == 1
    assert done.stderr.startswith("mkc: ")
