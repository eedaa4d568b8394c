"""mkc.bench.compare: variants are read, unpacked and set; they take turns; what fails or tells other tokens is said."""

import tarfile
from pathlib import Path

import pytest

from mkc.errors import OptionError

pytest.importorskip("transformers")
from mkc.bench import variants
from mkc.bench.variants import Build, Variant, parsed

# ---- what a variant is


def test_settings_are_sorted_into_what_they_are_of() -> None:
    found = parsed("fast=HEAD~3:delay=1000,one_in=1,signalled=rows+heads,ring_sm90.kRollingSlots=8")
    choices = (("one_in", 1), ("signalled", ("rows", "heads")))
    assert found == Variant("fast", Build("HEAD~3", choices, (("ring_sm90.kRollingSlots", 8),)), (("delay", 1000),))


def test_a_file_says_what_the_command_line_does(tmp_path: Path) -> None:
    file = tmp_path / "some.toml"
    file.write_text('[base]\ntree = "HEAD~3"\n["fast one"]\ntree = "."\npace = 0\nsignalled = ["rows"]\nkLine = 8\n')
    assert variants.read(file) == [parsed("base=HEAD~3"), parsed("fast one=.:pace=0,signalled=rows,kLine=8")]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("base", "a variant is NAME=TREE"),
        ("=.", "a variant is NAME=TREE"),
        ("a=.:one_in=17", "one_in=17"),
        ("a=.:grain=fine", "grain='fine'"),
        ("a=.:signalled=all", "must be a tuple of some of"),
        ("a=.:pace=fast", "pace='fast' must be a whole number"),
        ("a=.:window=0", "window=0 must be"),
        ("a=.:delay", "delay='' must be"),
    ],
)
def test_what_can_be_neither_planned_nor_run_is_refused(text: str, says: str) -> None:
    with pytest.raises(OptionError, match=says):
        parsed(text)


@pytest.mark.parametrize("text", ["fast = ", "fast = 1", "[fast]\npace = 1"])
def test_a_file_that_says_no_variants_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "some.toml"
    file.write_text(text)
    with pytest.raises(OptionError, match=r"some.toml"):
        variants.read(file)


# ---- its tree


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small checkout."""
    made = tmp_path / "tree"
    (made / "mkc" / "bench").mkdir(parents=True)
    (made / "templates" / "mkc").mkdir(parents=True)
    (made / "mkc" / "__init__.py").touch()
    (made / "mkc" / "bench" / "old.py").touch()
    (made / "templates" / "mkc" / "one.cuh").write_text("#define FEW 4  // of them\nconstexpr int kA = 2 * kB, kBoth = 1;\n")
    (made / "templates" / "mkc" / "two.cuh").write_text("  static constexpr uint32 kBoth = 7u;  // kA = 3;\n")
    return made


def headers(tree: Path) -> str:
    return "".join((tree / "templates" / "mkc" / f"{name}.cuh").read_text() for name in ("one", "two"))


def test_constants_are_set_in_a_copy(tree: Path, tmp_path: Path) -> None:
    before = headers(tree)
    variants.unpack(parsed(f"a={tree}:FEW=9,kA=5,two.kBoth=8").build, tmp_path / "copy")
    assert headers(tmp_path / "copy") == before.replace("FEW 4 ", "FEW 9 ").replace("2 * kB", "5").replace("7u", "8")
    assert headers(tree) == before


@pytest.mark.parametrize(
    ("setting", "says"),
    [("kC=1", "there is no kC: neither a setting"), ("B=1", "there is no B"), ("kBoth=1", "stands in one, two; .* one.kBoth")],
)
def test_constants_that_no_header_has_or_several_have_are_refused(setting: str, says: str, tree: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=says):
        variants.unpack(parsed(f"a={tree}:{setting}").build, tmp_path / "copy")


def test_all_are_measured_by_our_bench(tree: Path, tmp_path: Path) -> None:
    assert variants.unpack(Build(str(tree)), tmp_path / "copy") is None
    found = {path.name for path in (tmp_path / "copy" / "mkc" / "bench").iterdir()}
    assert {"timing.py", "__init__.py"} < found
    assert "old.py" not in found


def test_a_tar_of_a_commit_says_which(tree: Path, tmp_path: Path) -> None:
    file = tmp_path / "some.tar"
    with tarfile.open(file, "w", pax_headers={"comment": "426ef40"}) as archive:
        for part in variants.PARTS:
            archive.add(tree / part, part)
    assert variants.unpack(Build(str(file)), tmp_path / "copy") == "426ef40"
    assert headers(tmp_path / "copy") == headers(tree)


@pytest.mark.parametrize("name", ["no-such-commit", "--output=x", "empty", "text.tar"])
def test_what_is_no_tree_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.tar").write_text("none")
    with pytest.raises(OptionError, match=name):
        variants.unpack(Build(name), tmp_path / "copy")
