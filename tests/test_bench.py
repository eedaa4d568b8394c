"""mkc bench: what it measures is right and said in full, wrong results fail it, and a search for a tuning ends at the best."""

import json
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from oracle import machine
from typer.testing import CliRunner, Result

import mkc
from mkc import cache, cli, compiler
from mkc.bench.search import pacing, planning, search
from mkc.compiler import Compilation
from mkc.errors import PlanError
from mkc.frontend.module import options, target_for
from mkc.ir.choices import UNCHOSEN, Choices
from mkc.ir.cost import Costs
from mkc.numerics import in_float64, largest, teacher_forced, widened
from mkc.passes.link import link
from mkc.targets import cpu, cuda, kept, tuning
from mkc.targets.kernel import Tuning

pytest.importorskip("transformers")
from mkc.bench import baselines, fit, grading, models, run, tune
from mkc.bench import planning as passes
from mkc.bench.lean import Lean

TINY = ("bench", "--model", "tiny", "--target", "cpu", "--workers", 1, "--steps", 4, "--repeats", 2)


def bench(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, list(map(str, (*TINY, *arguments))))


@pytest.fixture(scope="module")
def model() -> Any:
    return models.make("tiny", "cpu", "float32")


def caches(model: Any, rows: int, batch: int = 1) -> list[torch.Tensor]:
    config = model.config
    shape = (batch, config.num_key_value_heads, rows, config.head_dim)
    return [torch.randn(shape) for _ in range(2 * config.num_hidden_layers)]


# ---- the command


def test_everything_measured_stands_in_the_table_and_in_the_json(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    result = bench("--context", 20, "--context", 40, "--json", file)
    assert result.exit_code == 0, result.output
    assert result.stdout.count("passed: logits") == 2
    assert all(word in result.stdout for word in ("x floor", "plain read", "eager"))
    found = json.loads(file.read_text())
    assert set(found) == {
        "schema", "passed", "model", "machine", "versions", "commit", "command", "steps", "repeats", "compile_s", "plan",
        "tuning", "choices", "tuned", "contexts",
    }  # fmt: skip
    assert found["passed"]
    assert found["tuned"] is None
    assert found["choices"]["grain"] == 1
    assert found["model"]["shapes"]["hidden_size"] == 64
    assert [context["context"] for context in found["contexts"]] == [20, 40]
    for context in found["contexts"]:
        assert context["grade"]["passed"]
        assert [row["name"] for row in context["rows"]] == ["mkc", "plain read", "eager"]
        assert all(len(row["us"]) == 2 and row["min_us"] <= row["median_us"] <= row["max_us"] for row in context["rows"])
        assert context["rows"][1]["over_floor"] == 1


def test_a_batch_is_graded_and_timed_as_one(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    result = bench("--batch", 3, "--context", 20, "--json", file)
    assert result.exit_code == 0, result.output
    assert "batch 3" in result.stdout
    found = json.loads(file.read_text())
    (context,) = found["contexts"]
    assert found["model"]["batch"] == 3
    assert context["grade"]["steps"] == 3 * 4
    hollow = models.make("tiny", "meta", "float32")
    assert context["step_bytes"] == models.step_bytes(hollow, 0) + 3 * models.step_bytes(hollow, 21.5) - 3 * models.step_bytes(hollow, 0)


def test_wrong_results_fail_the_command_and_are_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = mkc.CausalLM.logits_at
    monkeypatch.setattr(mkc.CausalLM, "logits_at", lambda *given: [logits + torch.eye(96)[3] for logits in right(*given)])
    file = tmp_path / "found.json"
    result = bench("--json", file)
    assert result.exit_code == 1
    assert "FAILED" in result.stdout
    assert "nothing was timed" in result.stderr
    found = json.loads(file.read_text())
    assert not found["passed"]
    assert found["contexts"][0]["rows"] == []


def test_a_wrong_token_fails_as_a_wrong_logit_does(monkeypatch: pytest.MonkeyPatch) -> None:
    right = mkc.CausalLM.decode_on

    def wrong(lm: Any, steps: int) -> None:
        right(lm, steps)
        lm.state.text.add_(1).remainder_(96)

    monkeypatch.setattr(mkc.CausalLM, "decode_on", wrong)
    result = bench("--baselines", "none")
    assert result.exit_code == 1
    assert "tokens wrong" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--model", "no such"), "nor one of qwen3-0.6b, "),
        (("--context", 1000), "go beyond the model's 256 positions"),
        (("--json", "/no/such/folder/x.json"), "there is no folder /no/such/folder"),
        (("--max-length", 20, "--context", 20), "--max-length 20 has no room for --context 20 and --steps 4; ask for 32 or more"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_a_sentence(arguments: tuple[object, ...], says: str) -> None:
    result = bench(*arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith("mkc: ")
    assert says in result.stderr


@pytest.mark.parametrize("arguments", [("--baselines", "fast"), ("--context", 0), ("--steps", 1), ("--batch", 17), ("--speed",)])
def test_options_out_of_their_range_are_refused(arguments: tuple[object, ...]) -> None:
    assert bench(*arguments).exit_code == 2


def test_a_baseline_that_fails_or_comes_too_late_is_said_to_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("out of memory\nat all")

    monkeypatch.setattr(baselines, "make", broken)
    wanted = run.Wanted("tiny", "cpu", (20,), 4, 2, "eager", workers=1)
    (found,) = run.bench(wanted).contexts
    assert found.rows[-1].skipped == "RuntimeError: out of memory"
    (found,) = run.bench(replace(wanted, seconds=0)).contexts
    assert found.rows[-1].skipped == "the budget of 0 s was spent"


# ---- what is measured


@pytest.mark.parametrize("name", [n for n in models.CONFIGURATIONS if n != "tiny"])
def test_configurations_have_the_parameters_of_their_models(name: str) -> None:
    millions = {"qwen3-0.6b": 596, "qwen3-1.7b": 1721, "qwen3-8b": 8191, "llama-3.2-1b": 1236, "smollm2-135m": 135,
                "gemma-3-1b": 1000, "qwen2.5-1.5b": 1544}  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "refuse_beyond_memory", lambda *_: None)
        hollow = models.make(name, "meta", "bfloat16")
    assert round(sum(p.numel() for p in hollow.parameters()) / 1e6) == millions[name]
    untied = not hollow.config.tie_word_embeddings
    weights = sum(2 * p.numel() for p in hollow.parameters())
    table = 2 * hollow.config.vocab_size * hollow.config.hidden_size
    row = 2 * hollow.config.hidden_size
    assert models.step_bytes(hollow, 0) == weights - untied * (table - row)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("native", [False, True])
def test_the_lean_decoder_computes_what_the_model_does(model: Any, native: bool, batch: int) -> None:
    held = caches(model, 32, batch)
    text, context = [1, 5, 9, 2], 20
    lean = Lean(model, 32, native, batch)
    for block, keys, values in zip(lean.blocks, held[::2], held[1::2], strict=True):
        block.keys.copy_(keys)
        block.values.copy_(values)
    lean.position.fill_(context)
    lm: Any = SimpleNamespace(model=model, state=SimpleNamespace(caches=held))
    rows = [grading.continued(lm, context, text, torch.float32, row) for row in range(batch)]
    for token, *expected in zip(text, *rows, strict=True):
        lean.token.fill_(token)
        torch.testing.assert_close(lean.logits(), torch.stack(expected), rtol=1e-4, atol=1e-5)
        lean()


def test_eager_steps_do_not_depend_on_what_was_run_before(model: Any) -> None:
    eager = baselines.make("eager", model, caches(model, 32), 20, 32)
    for _ in range(3):
        eager.rewind()
        eager.go(10)  # three times would not fit


def test_widened_weights_compute_what_a_copy_in_float64_does(model: Any) -> None:
    half = models.make("tiny", "cpu", "bfloat16")
    with in_float64(half) as wide:
        exact = teacher_forced(wide, [3, 1, 4, 1, 5])
    with widened(half) as same:
        found = teacher_forced(same, [3, 1, 4, 1, 5])
    assert found.dtype == torch.float64
    assert largest((found - exact).abs()) < 1e-12


# ---- tunings


def test_a_search_goes_from_one_setting_to_the_next_and_ends_at_the_best() -> None:
    best = Tuning(window=6, pace=80, delay=1000)

    def measure(tried: Tuning) -> float:
        return sum(getattr(tried, name) != getattr(best, name) for name in ("window", "pace", "delay"))

    assert search(Tuning(4, 0, 1400), pacing(12), measure) == best


def test_where_nobody_paces_only_the_delay_is_searched() -> None:
    tried: list[Tuning] = []
    search(Tuning(4, 0, 1400), pacing(12, paced=False), lambda tuning: tried.append(tuning) or 1.0)  # type: ignore[func-returns-value]
    assert {(t.window, t.pace) for t in tried} == {(4, 0)}
    assert len({t.delay for t in tried}) > 3


def test_a_search_without_time_keeps_what_it_has() -> None:
    seconds = iter([2.0, 1.0, None])
    assert search(Tuning(4, 0, 1400), pacing(12), lambda _: next(seconds)) == Tuning(4, 70, 1400)
    assert search(Tuning(4, 0, 1400), pacing(12), lambda _: None) == Tuning(4, 0, 1400)


def test_a_gain_within_the_noise_is_none() -> None:
    settings, took = {"grain": (2.0, 4.0)}, {1.0: 1.0, 2.0: 0.995, 4.0: 0.98}
    assert search(UNCHOSEN, settings, lambda tried: took[tried.grain], gain=0.01) == Choices(grain=4.0)
    assert search(UNCHOSEN, settings, lambda tried: took[tried.grain], gain=0.05) == UNCHOSEN


@pytest.mark.parametrize(("streams", "batch"), [(True, 1), (True, 4), (False, 1)])
def test_every_setting_of_a_plan_that_is_searched_is_a_choice_that_may_be_made(streams: bool, batch: int) -> None:
    for name, values in planning(streams, batch).items():
        assert getattr(UNCHOSEN, name) in values
        assert all(replace(UNCHOSEN, **{name: value}) for value in values)


@pytest.fixture(scope="module")
def streaming() -> Compilation:
    """A plan with streaming workers, for a GPU that need not be here."""
    hollow = models.make("tiny", "meta", "bfloat16")
    wide = dict(hidden_size=512, intermediate_size=640, head_dim=64)
    with torch.device("meta"):
        hollow = type(hollow)(type(hollow.config)(**(hollow.config.to_dict() | wide))).to(torch.bfloat16).eval()
    return mkc.CausalLM(hollow, max_length=64, target=cuda.target(arch="sm_90a", workers=4)).compilation


def test_a_tuning_is_kept_for_its_plan_and_gpu(
    streaming: Compilation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MKC_TUNED", "1")
    monkeypatch.setenv("MKC_CACHE_DIR", str(tmp_path / "kernels"))
    program, found = streaming.program, Tuning(3, 70, 1000)
    assert tuning.recalled(program, "H200") is None
    tuning.keep(program, "H200", found)
    assert tuning.recalled(program, "H200") == found
    assert tuning.recalled(program, "H100") is None
    assert tuning.recalled(replace(program, queue=program.queue[::-1]), "H200") is None
    monkeypatch.setenv("MKC_TUNED", "0")
    assert tuning.recalled(program, "H200") is None


@pytest.mark.parametrize(
    "entry",
    [
        b"", b"{", b"[]", b"\xff", b'{"window": 4}', b'{"window": 0, "pace": 0, "delay": 0}',
        b'{"window": 4, "pace": -1, "delay": 0}', b'{"window": 4, "pace": 0, "delay": 1e9}',
        b'{"window": 999, "pace": 0, "delay": 0}', b'{"window": true, "pace": 0, "delay": 0}',
        b'{"window": 4, "pace": 0, "delay": 99999999}', b'{"window": 4, "pace": 101, "delay": 0}',
    ],
)  # fmt: skip
def test_a_damaged_tuning_is_ignored(
    streaming: Compilation, entry: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MKC_TUNED", "1")
    monkeypatch.setenv("MKC_CACHE_DIR", str(tmp_path / "kernels"))
    cache.keep("tuning", tuning._key(streaming.program, "H200"), entry)
    assert tuning.recalled(streaming.program, "H200") is None


def test_the_first_guess_fits_the_ring() -> None:
    assert tuning.guessed(having(11, 4, 0, 0, 0), 4650 / 132, 1.98) == Tuning(4, 95, 1000)
    assert tuning.guessed(having(3, 1), 10.0, 2.0).window == 3


def test_short_shares_are_soon_done_everywhere() -> None:
    assert [tuning.guessed(having(11, slots), 35.0, 1.98).delay for slots in (1, 2, 4)] == [463, 927, 1000]


def having(ring_slots: int, *slots: int) -> Any:
    return SimpleNamespace(ring_slots=ring_slots, records=np.array([(4 * n,) for n in slots], [("fragments", "<u4")]))


def test_the_pace_is_searched_by_running_the_kernel_with_it(streaming: Compilation, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = SimpleNamespace(program=streaming.program, tuning=Tuning(4, 0, 1400))
    lm: Any = SimpleNamespace(kernel=kernel, compilation=streaming)
    trials = tune.Trials(lm, (20,), 4, time.monotonic() + 60)
    monkeypatch.setattr(
        tune.Trials, "times", lambda *_: [abs(kernel.tuning.pace - 95) + abs(kernel.tuning.delay - 1800)]
    )
    assert tune._paced(trials) == kernel.tuning == Tuning(4, 95, 1800)


# ---- plans


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured counts, and is kept for this test alone. Kernels are kept as ever."""
    held: dict[tuple[str, str], bytes] = {}
    monkeypatch.setattr(kept, "cache", SimpleNamespace(
        recalled=lambda kind, key: held.get((kind, key)), keep=lambda kind, key, payload: held.update({(kind, key): payload})
    ))  # fmt: skip
    monkeypatch.setenv("MKC_TUNED", "1")


class Clock:
    """Time that passes when a plan is run, by its grain."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.tried = 0.0, list[float]()
        monkeypatch.setattr(tune, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(tune.Trials, "times", lambda trials, count: self.times(trials, count))
        monkeypatch.setattr(tune.fit, "measure", lambda _: Costs(20.0, 40.0, 80.0, 250.0))  # what is guessed of 2 workers

    def times(self, trials: Any, count: int) -> list[float]:
        grain = trials.lm.target.choices.grain
        self.tried.append(grain)
        self.now += 10.0
        return [{0.5: 0.5, 16.0: 0.2}.get(grain, 1.0)] * count


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def lm(model: Any) -> Any:
    torch.manual_seed(0)
    made = mkc.CausalLM(model, max_length=48, target="cpu", workers=2)
    for cached in made.state.caches:
        cached.normal_()
    return made


def tuned(lm: Any, end: float = 1e6) -> Any:
    with torch.no_grad():
        return tune.tune(lm, 2, (20,), 4, end, lambda _: None)


@pytest.mark.usefixtures("on")
def test_the_best_plan_is_kept_and_used_by_whoever_compiles_the_model_again(lm: Any, clock: Clock, model: Any) -> None:
    found = tuned(lm)
    assert found.taken
    assert found.medians == (250_000, 50_000)
    assert found.refused == ()
    assert lm.target.choices == Choices(grain=16.0)
    again = mkc.CausalLM(model, max_length=48, workers=2)
    assert again.target.choices == Choices(grain=16.0)
    assert mkc.CausalLM(model, max_length=32, workers=2).target.choices == UNCHOSEN
    assert kept.costs(cpu.machine()) == Costs(20.0, 40.0, 80.0, 250.0)


@pytest.mark.usefixtures("on")
def test_plans_that_are_wrong_are_refused_however_short(lm: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    right = tune.grade_at

    def graded(lm: Any, *given: Any) -> Any:
        grade = right(lm, *given)
        return replace(grade, wrong=1) if lm.target.choices.grain == 16.0 else grade

    monkeypatch.setattr(tune, "grade_at", graded)
    found = tuned(lm)
    assert lm.target.choices == Choices(grain=0.5)
    assert 16.0 not in clock.tried
    assert [reason.partition(":")[0] for reason in found.refused] == ["grain 16"]


@pytest.mark.usefixtures("on")
def test_plans_that_cannot_be_built_are_refused_and_the_search_goes_on(
    lm: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = mkc.CausalLM.replan

    def replan(lm: Any, target: Any) -> None:
        if target.choices.grain == 0.5:
            raise PlanError("no room\nat all")
        plan(lm, target)

    monkeypatch.setattr(mkc.CausalLM, "replan", replan)
    assert any(reason.endswith("no room") for reason in tuned(lm).refused)
    assert lm.target.choices == Choices(grain=16.0)


@pytest.mark.usefixtures("on", "clock")
def test_a_search_of_plans_without_time_stays_with_the_default(lm: Any) -> None:
    found = tuned(lm, end=-1.0)
    assert not found.taken
    assert found.tried == 0
    assert lm.target.choices == UNCHOSEN


@pytest.mark.usefixtures("on")
def test_equal_plans_are_run_once(lm: Any, clock: Clock) -> None:
    trials = tune.Trials(lm, (20,), 4, 1e6)
    target = target_for(options(workers=1), torch.device("cpu"))
    with torch.no_grad():
        assert trials(target) == trials(replace(target, choices=Choices(grain=64.0)))
    assert clock.tried == [1.0]


def test_the_same_texts_are_answered_once() -> None:
    asked: list[int] = []
    ask = grading.remembered(lambda lm, context, texts: asked.append(context) or (torch.ones(1), torch.ones(1)))  # type: ignore[func-returns-value]
    lm: Any = None
    for context in (20, 20, 40):
        ask(lm, context, [[1, 2], [3]])
    assert asked == [20, 40]


@pytest.mark.usefixtures("on")
def test_tune_works_where_nothing_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune.fit, "measure", lambda _: Costs(20.0, 20.0, 50.0, 200.0))
    file = tmp_path / "found.json"
    result = bench("--tune", "--baselines", "none", "--context", 20, "--max-length", 48, "--json", file)
    assert result.exit_code == 0, result.output
    assert " us a step, by default " in result.stdout
    found = json.loads(file.read_text())
    assert found["model"]["room"] == 48
    assert found["tuned"]["tried"] > 0
    assert found["tuned"]["costs"] == {"alone": 20, "together": 20, "task_ns": 50, "event_ns": 200}
    assert found["tuned"]["default_median_us"] > 0
    if not found["tuned"]["taken"]:
        assert found["choices"]["grain"] == 1


def test_the_costs_of_this_machine_are_measured_in_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fit.READ_BYTES, "cpu", 1 << 22)
    found = fit.measure(torch.device("cpu"))
    assert 0.01 < found.alone < 10_000
    assert 0.01 < found.together < 10_000
    assert 1 <= found.task_ns < 1e6
    assert 1 <= found.event_ns < 1e9


# ---- planning


@pytest.mark.parametrize("prompt", [None, 8])
def test_the_time_of_every_pass_is_told(prompt: int | None) -> None:
    seconds, tasks = passes.planning("tiny", prompt, machine(4))
    assert seconds.keys() == {"trace", *passes.PASSES} - {"stream"}
    assert all(taken >= 0 for taken in seconds.values())
    assert tasks > 100
    assert compiler.link is link  # as before
