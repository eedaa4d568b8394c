"""Stages as text: what they say, how they are named, and where they are written."""

from pathlib import Path

import pytest

from mkc.compiler import Compilation, compile_graphs
from mkc.inspect.stages import LEVELS, dump, stages, write_stages


@pytest.mark.parametrize("stage", [*LEVELS, "program"])
def test_every_stage_of_an_mlp_reads_as_it_did(mlp: Compilation, stage: str, golden) -> None:
    golden(f"mlp.{stage}.txt", stages(mlp)[stage] + "\n")


def test_the_thin_page_of_an_mlp_reads_as_it_did(mlp: Compilation, golden) -> None:
    golden("mlp.page.txt", mlp.source.text)


def test_the_page_among_the_stages_is_complete(mlp: Compilation) -> None:
    page = stages(mlp)["page"]
    assert page == mlp.source.complete
    assert "#include <mkc/" not in page


def test_sections_are_told_apart_by_their_names(two_sections: Compilation) -> None:
    names = list(stages(two_sections))
    assert names[:4] == ["graph.prompt", "graph.decode", "fused.prompt", "fused.decode"]
    assert names[-2:] == ["program", "page"]


def test_sections_of_one_name_are_told_apart_by_their_numbers(mlp: Compilation) -> None:
    twice = compile_graphs([mlp.sections[0].graph] * 2, mlp.target)
    assert list(stages(twice))[:2] == ["graph.0", "graph.1"]


def test_files_are_numbered_in_the_order_of_the_journey(mlp: Compilation, tmp_path: Path) -> None:
    written = write_stages(mlp, tmp_path / "deep" / "folder")
    assert [path.name for path in written] == sorted(path.name for path in written)
    assert [path.name for path in written][:2] == ["1-graph.txt", "2-fused.txt"]
    assert written[-1].name == "9-page.cpp"
    assert written[3].read_text() == stages(mlp)["tasks"] + "\n"


def test_nothing_is_dumped_unless_asked(mlp: Compilation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MKC_DUMP", raising=False)
    assert dump(mlp) is None


def test_every_compilation_is_dumped_into_a_folder_of_its_own(
    mlp: Compilation, deep: Compilation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MKC_DUMP", str(tmp_path))
    assert dump(mlp) == dump(mlp) != dump(deep)
    assert len(list(tmp_path.iterdir())) == 2
