"""mkc.bench.compare: variants are read, unpacked and set; they take turns; what fails or tells other tokens is said."""

import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from mkc.errors import OptionError

pytest.importorskip("transformers")
from mkc.bench import children, contest, variants
from mkc.bench import compare as command
from mkc.bench.child import Subject
from mkc.bench.comparison import Comparison, Ratio, first_difference, ratio
from mkc.bench.contest import compare
from mkc.bench.run import Wanted
from mkc.bench.variants import BENCH, Build, Variant, parsed

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
    monkeypatch.setattr(variants, "REPOSITORY", tmp_path)
    subprocess.run(["git", "init", "-q"], check=True)
    with pytest.raises(OptionError, match=name):
        variants.unpack(Build(name), tmp_path / "copy")
    assert not list(tmp_path.glob("x*"))


# ---- what a comparison finds


def test_what_drifts_from_round_to_round_falls_out_of_a_ratio() -> None:
    base = [(10.0 * n, 12.0 * n, 11.0 * n) for n in range(1, 10)]
    faster = [tuple(0.9 * us for us in turn) for turn in base]
    found = ratio(faster, base)
    assert found is not None
    assert [round(x, 9) for x in (found.low, found.median, found.high)] == [0.9, 0.9, 0.9]


@pytest.mark.parametrize(("rounds", "low", "high"), [(1, 1, 1), (5, 1, 5), (6, 1, 6), (8, 1, 8), (9, 2, 8), (12, 3, 10), (25, 8, 18)])
def test_an_interval_leaves_out_what_the_sign_test_does(rounds: int, low: int, high: int) -> None:
    found = ratio([(float(n),) for n in range(rounds, 0, -1)], [(1.0,)] * rounds)
    assert found is not None
    assert (found.low, found.high) == (low, high)


def test_without_turns_there_is_no_ratio() -> None:
    assert ratio([], [(1.0,)]) is None


def test_tokens_differ_from_the_first_that_does_in_any_sequence() -> None:
    assert first_difference([[1, 2, 3], [4, 5, 6]], [[1, 2, 3], [4, 5, 6]]) is None
    assert first_difference([[1, 2, 0], [4, 0, 6]], [[1, 2, 3], [4, 5, 6]]) == 1


# ---- processes: trees whose mkc is a few lines that answer, without a model

ANSWERING = """
import json, sys, mkc
print(json.dumps(dict(plan="none", dtype="float32", compile_s=0.1, choices={}, tuning=None)), flush=True)
for line in sys.stdin:
    print(json.dumps(mkc.answer(**json.loads(line))), flush=True)
"""
RIGHT = 'answer = lambda **asked: {"us": [2.0, 2.0, 2.0], "tokens": [[1, 2, 3]]}'
OTHER = 'answer = lambda **asked: {"us": [1.0, 1.0, 1.0], "tokens": [[1, 2, 4]]}'
FAILS = 'answer = lambda **asked: {"error": "BuildError: no", "trace": "line 1"}'
DIES = "import os, sys; answer = lambda **asked: sys.exit('no more')"
KILLED = "import os; os.kill(os.getpid(), 9)"
SILENT = "import subprocess; subprocess.run(['sleep', '60'])"

Trees = Callable[..., list[Variant]]


@pytest.fixture
def trees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trees:
    """Variants a, b, ... of trees whose mkc is this code."""
    monkeypatch.setattr(children, "command", lambda _: (sys.executable, "-P", "-c", ANSWERING))

    def made(*codes: str) -> list[Variant]:
        for name, code in zip("abcdef", codes, strict=False):
            (tmp_path / name / "mkc").mkdir(parents=True)
            (tmp_path / name / "templates").mkdir()
            (tmp_path / name / "mkc" / "__init__.py").write_text(code)
        return [parsed(f"{name}={tmp_path / name}") for name, _ in zip("abcdef", codes, strict=False)]

    return made


def compared(variants: list[Variant], rounds: int = 2, seconds: float = 30.0) -> Comparison:
    return compare(Wanted("tiny", "cpu", (20,), 3, rounds, "none", seconds=seconds), variants)


def test_variants_take_turns_forwards_and_backwards(trees: Trees, tmp_path: Path) -> None:
    log = tmp_path / "log"
    noted = f'answer = lambda **asked: [open("{log}", "a").write(__file__[-17]), {{"us": [1.0], "tokens": [[1]]}}][1]'
    found = compared(trees(noted, noted, noted), rounds=3)
    assert found.passed
    assert len(log.read_text()) == 9
    first, second, third = (log.read_text()[i : i + 3] for i in (0, 3, 6))
    assert first == third == second[::-1]


def test_the_first_variant_is_what_others_are_compared_with(trees: Trees) -> None:
    found = compared(trees(RIGHT, RIGHT, OTHER))
    first, same, other = (outcome.contexts[20] for outcome in found.outcomes)
    assert not found.passed
    assert (first.ratio, first.differs, same.differs, other.differs) == (None, None, None, 2)
    assert (same.ratio, other.ratio) == (Ratio(1, 1, 1), Ratio(0.5, 0.5, 0.5))


@pytest.mark.parametrize(
    ("code", "failed", "said"),
    [
        (FAILS, "BuildError: no", "line 1"),
        (DIES, "ended with 1: no more", "no more"),
        (KILLED, "was killed by SIGKILL", ""),
        ("raise ValueError('not today')", "ended with 1: ValueError: not today", "Traceback"),
    ],
)
def test_a_variant_that_fails_is_a_row_and_not_the_end(code: str, failed: str, said: str, trees: Trees) -> None:
    found = compared(trees(RIGHT, code, RIGHT))
    assert [outcome.failed for outcome in found.outcomes] == ["", failed, ""]
    assert [len(outcome.contexts[20].turns) for outcome in found.outcomes] == [2, 0, 2]
    assert said in found.outcomes[1].said
    assert not found.passed


def test_where_the_first_fails_others_are_timed_and_compared_with_none(trees: Trees) -> None:
    found = compared(trees(KILLED, RIGHT)).outcomes[1].contexts[20]
    assert len(found.turns) == 2
    assert (found.ratio, found.compared) == (None, False)


def test_one_that_says_nothing_is_ended_with_what_it_began(trees: Trees) -> None:
    start = time.monotonic()
    found = compared(trees(RIGHT, SILENT), seconds=4)  # its sleep holds the pipe that is read to the end
    assert time.monotonic() - start < 20
    assert [outcome.failed for outcome in found.outcomes] == ["", "had no answer when the time was up"]
    assert len(found.outcomes[0].contexts[20].turns) == 2


def test_variants_of_one_build_are_lost_together(trees: Trees, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contest, "PATIENCE", 1.0)
    first, hangs = trees(RIGHT, "import time; answer = lambda **asked: time.sleep(60)")
    found = compared([first, hangs, Variant("c", hangs.build, (("delay", 1),))])
    assert [outcome.failed for outcome in found.outcomes] == ["", *["had no answer when the time was up"] * 2]


def test_no_turn_begins_when_the_time_is_up(trees: Trees) -> None:
    slow = "import time; answer = lambda **asked: [time.sleep(0.3), {'us': [1.0], 'tokens': [[1]]}][1]"
    found = compared(trees(slow), rounds=1000, seconds=2)
    assert 0 < len(found.outcomes[0].contexts[20].turns) < 10
    assert found.skipped.startswith("the budget of 2 s was spent before rounds")


def test_a_child_that_nobody_can_ask_any_more_ends_with_what_it_began(tmp_path: Path) -> None:
    """Its parent was killed, so that nothing else could end it. The sleep holds the pipe that is read to the end."""
    (tmp_path / "mkc").mkdir()
    (tmp_path / "mkc" / "__init__.py").write_text("import subprocess; subprocess.run(['sleep', '60'])")
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-P", str(BENCH / "lifeline.py"), "{}"], input="", capture_output=True, text=True, start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (-9, "")
    assert time.monotonic() - start < 20


# ---- the command


def test_all_that_was_found_is_shown_and_kept(
    trees: Trees, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trees(RIGHT, OTHER, FAILS)
    monkeypatch.chdir(tmp_path)
    names = [part for name in "abc" for part in ("--variant", f"{name}={name}")]
    with pytest.raises(SystemExit, match="not all variants ran and told the right tokens"):
        command.main([*names, "--model", "tiny", "--target", "cpu", "--steps", "3", "--rounds", "2", "--json", "found.json"])
    printed = capsys.readouterr().out
    assert "OTHER TOKENS FROM STEP 2 ON" in printed
    assert "c FAILED: BuildError: no" in printed
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["passed"], found["schema"], found["steps"], found["rounds"]) == (False, 1, 3, 2)
    assert {"machine", "versions", "commit", "command"} < found.keys()
    assert [variant["tree"] for variant in found["variants"]] == ["a", "b", "c"]
    (context,) = found["variants"][1]["contexts"]
    assert (context["median_us"], context["ratio"], context["other_tokens_from"]) == (1.0, 0.5, 2)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "there is nothing to compare"),
        (["--variant", "a=.", "--variant", "a=."], "two variants of the name a"),
        (["--variant", "a=.:kNo=1"], "there is no kNo"),
        (["--variant", "a=.", "--json", "/no/such/folder/x.json"], "there is no folder /no/such/folder"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_runs(
    arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "command", lambda _: pytest.fail("it ran"))
    monkeypatch.chdir(BENCH.parent.parent)
    with pytest.raises(SystemExit, match=says):
        command.main([*arguments, "--target", "cpu"])


# ---- with a model


def test_two_variants_of_this_compiler_are_compared(capsys: pytest.CaptureFixture[str]) -> None:
    """With real processes and kernels. The second is planned in another way, and tells the same tokens."""
    names = ["--variant", f"base={BENCH.parent.parent}", "--variant", f"coarse={BENCH.parent.parent}:grain=8"]
    command.main([*names, *"--model tiny --target cpu --workers 1 --context 20 --steps 4 --rounds 2".split()])
    printed = capsys.readouterr().out
    assert printed.count("the same") == 2
    assert "grain 8, not streaming" in printed


@pytest.fixture(scope="module")
def subject() -> Iterator[Subject]:
    """What a child has, here, with kernels that other tests have too."""
    with torch.no_grad():
        yield Subject("tiny", "cpu", None, 1, 32, 1, {"signalled": ["rows"]}, False, False)


def test_a_child_says_what_it_built_and_tells_the_same_tokens_each_time(subject: Subject) -> None:
    assert json.loads(json.dumps(subject.describe()))["choices"]["signalled"] == ["rows"]
    first, _, again = (subject.time(context, 4, 3, {}) for context in (20, 10, 20))
    assert len(first["us"]) == 3
    assert [len(row) for row in first["tokens"]] == [4]
    assert first["tokens"] == again["tokens"]


def test_a_child_grades_with_caches_that_no_step_wrote_to(subject: Subject) -> None:
    subject.lm.state.caches[0].fill_(torch.nan)
    found = subject.grade(20, 2, {})
    assert found["passed"], found["said"]


def test_stamps_of_a_child_become_an_account_of_phases(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MKC_DEBUG", "1")  # sooner built
    subject.stamp(20, 4, {}, str(tmp_path / "stamps.npz"))
    account = contest._account(tmp_path / "stamps.npz").splitlines()
    assert [line.split()[0] for line in account].count("attention") == 2
    assert "least" in account[len(account) // 2]


def test_a_kernel_that_does_not_stream_has_no_tuning(subject: Subject) -> None:
    with pytest.raises(ValueError, match="only kernels of streaming workers on a GPU have a tuning"):
        subject.time(20, 4, 1, {"delay": 1000})
