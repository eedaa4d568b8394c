"""Trees -> Children: processes that each measure one build when they are asked, and none of which is there afterwards."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ENVIRONMENT = {"MKC_TUNED": "0"}  # what was tuned before counts for none
SHOWN = 20  # lines of a stderr


class Lost(Exception):  # noqa: N818  (of a variant, from then on)
    """A child that did not do what it was asked: why, in a line, and the lines that stand behind that."""

    def __init__(self, reason: str, said: str) -> None:
        super().__init__(reason)
        self.said = said


def command(tree: Path) -> tuple[str, ...]:
    """What runs in a tree; of the folder that it runs in nothing is imported."""
    return sys.executable, "-P", str(tree / "mkc" / "bench" / "lifeline.py")


class Child:
    """One process, in a group of its own. Raises Lost where it dies, fails, or takes longer than until `end` by the clock."""

    def __init__(self, tree: Path, log: Path, wanted: dict[str, Any]) -> None:
        path = os.pathsep.join(filter(None, [str(tree), os.environ.get("PYTHONPATH")]))
        self._tree, self._log = tree, log
        self._lost: Lost | None = None
        with log.open("wb") as stderr:
            self._process = subprocess.Popen(
                [*command(tree), json.dumps(wanted)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True,
                env=os.environ | ENVIRONMENT | {"PYTHONPATH": path}, start_new_session=True,
            )  # fmt: skip
        self._answers: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._listen, daemon=True)
        self._reader.start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put(None)

    def ask(self, end: float, do: str, **given: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        if self._lost:
            raise self._lost
        with suppress(BrokenPipeError):  # its answer says why
            self._process.stdin.write(json.dumps({"do": do, **given}) + "\n")
            self._process.stdin.flush()
        return self.answer(end)

    def answer(self, end: float) -> dict[str, Any]:
        try:
            line = self._answers.get(timeout=max(0.0, end - time.monotonic()))
        except queue.Empty:
            raise self._gone(Lost("had no answer when the time was up", self._said())) from None
        if line is None:
            raise self._gone(self._died())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise Lost(self._shortened(answer["error"]), _last(self._shortened(answer["trace"])))
        return answer

    def _gone(self, lost: Lost) -> Lost:
        """For good: others may ask for the same build."""
        self.end()
        self._lost = lost
        return lost

    def _died(self) -> Lost:
        """It is not waited for: until `end` nobody else can have its number."""
        found = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        assert found is not None
        how = f"ended with {found.si_status}"
        if found.si_code != os.CLD_EXITED:
            how = f"was killed by {signal.Signals(found.si_status).name}"
        said = self._said()
        return Lost(f"{how}: {said.splitlines()[-1]}" if said else how, said)

    def _said(self) -> str:
        return _last(self._shortened(self._log.read_text(errors="replace")))

    def _shortened(self, text: str) -> str:
        """Without the folder of the tree, which is gone afterwards."""
        return text.replace(f"{self._tree}/", "")

    def end(self) -> None:
        """At once, with whatever it has begun itself."""
        if self._process.returncode is not None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()


def _last(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-SHOWN:])


class Children(dict[Any, Child]):
    """By what they build; all of them end when the block does."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for child in self.values():
            child.end()
