"""Plan, mutant -> whether some order of it gives another result, leaves its memory, or hangs. Knows nothing of the checker."""

from collections.abc import Sequence
from random import Random
from typing import TypeVar

from check.plans import Memory, Plan

from mkc.ir.graph import Kind
from mkc.ir.program import Body, Program
from mkc.ir.tasks import Tasks
from mkc.targets.interpreter import POISON, Blocking, Interpreter, _Launch

T = TypeVar("T")
MADE, KEPT = (Kind.ARENA, Kind.OUTPUT), (Kind.STATE, Kind.OUTPUT)


class Lopsided(Random):
    """Somebody is always slow: picks by priorities that now and then turn over, which finds rare orders soon."""

    def choice(self, seq: Sequence[T]) -> T:  # type: ignore[override]
        if not hasattr(self, "ranks") or self.random() < 0.08:
            self.ranks = [self.random() for _ in range(64)]
        return max(seq, key=lambda worker: self.ranks[hash(worker) % 64])


class _Open(Exception):  # noqa: N818  (nothing is wrong)
    """The script is at its end, and these workers may go on."""


class _Script(Random):
    """First these workers, in turn."""

    workers: list[int]
    at = 0

    def choice(self, seq: Sequence[T]) -> T:  # type: ignore[override]
        if self.at == len(self.workers):
            raise _Open(*seq)
        self.at += 1
        return seq[seq.index(self.workers[self.at - 1])]  # type: ignore[arg-type]


class _Faithful(_Launch):
    """Believes also the word that picks a body."""

    def __init__(self, runner: "Runner", program: Program, memory: Memory, order: Random) -> None:
        super().__init__(Interpreter(program, runner.sections, order), memory, runner.plan.steps)
        self.runner = runner
        self.held: dict[int, tuple[int, int]] = {}

    def run(self, number: int, task: int, section: int, step: int) -> Blocking:
        self.held[number] = (task, step)
        yield from super().run(number, task, section, step)

    def compute(self, task: int) -> None:
        """Do what the body does, which may have been made for another node."""
        body, kept = self.program.bodies[int(self.program.tasks["body"][task])], self.owners[task]
        if body != self.runner.own[task]:
            self.owners[task] = self.runner.example[body]
        try:
            super().compute(task)
        finally:
            self.owners[task] = kept

    def state(self) -> int:
        """Equal for launches that can go on alike."""
        held = tuple(sorted(self.held.items()))
        return hash((held, *self.counters, *self.progress.tolist(), *(words.tobytes() for words in self.memory)))


class Runner:
    """Runs mutants of a plan and compares what they leave with what the plan leaves."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.program = plan.made.program
        self.sections: list[Tasks] = [section.tasks for section in plan.made.sections]
        parts = [(part, number) for number, meaning in enumerate(self.program.meanings) for part in meaning.parts]
        self.own = [body for part, _ in parts for body in part.bodies]
        self.example: dict[Body, tuple[Tasks, int]] = {}
        for part, number in parts:
            first = part.tasks[0] - self.program.meanings[number].tasks[0]
            for local, body in enumerate(part.bodies, first):
                self.example.setdefault(body, (self.sections[number], local))
        self.expected = self.finished(*self.launch(self.program, Random(0)))

    def launch(self, program: Program, order: Random) -> tuple[_Faithful, Memory]:
        memory = self.plan.memory()
        for slot, words in zip(self.program.slots, memory, strict=True):
            if slot.kind in MADE:
                words.fill(POISON)
        seen = [words[: slot.nbytes] for slot, words in zip(program.slots, memory, strict=True)]
        return _Faithful(self, program, seen, order), memory

    def finished(self, launch: _Faithful, memory: Memory) -> list[bytes]:
        """What is left in states and outputs. Raises whatever the run raises."""
        launch.finish()
        return [words.tobytes() for slot, words in zip(self.program.slots, memory, strict=True) if slot.kind in KEPT]

    def is_harmful(self, program: Program, tries: int) -> bool:
        """As far as some random orders show."""
        return any(self._differs(program, (Lopsided if seed % 3 else Random)(seed)) for seed in range(tries))

    def _differs(self, program: Program, order: Random) -> bool:
        try:
            return self.finished(*self.launch(program, order)) != self.expected
        except _Open:
            raise
        except Exception:  # noqa: BLE001  (a hang, a stray access, words that make no sense)
            return True

    def can_be_harmful(self, program: Program, limit: int) -> bool | None:
        """In any order at all; None when more than `limit` situations would have to be looked at."""
        seen: set[int] = set()
        todo: list[list[int]] = [[]]
        while todo:
            script = _Script()
            script.workers = todo.pop()
            launch, memory = self.launch(program, script)
            try:
                if self.finished(launch, memory) != self.expected:
                    return True
            except _Open as ready:
                if launch.state() not in seen:
                    seen.add(launch.state())
                    todo += [[*script.workers, worker] for worker in ready.args]
            except Exception:  # noqa: BLE001
                return True
            if len(seen) > limit:
                return None
        return False
