"""What the passes need to know of a machine: how many workers, how fast they read, what a task and an event cost."""

from dataclasses import dataclass

from mkc.ir.choices import UNCHOSEN, Choices


@dataclass(frozen=True, slots=True)
class Target:
    """A machine as the cost model sees it. Times are nanoseconds, rates are per worker."""

    name: str  # "cpu" or "cuda"
    arch: str  # "native", "sm_90a", ...
    workers: int  # one per SM, or one per thread
    lanes: int  # threads that run one task together
    scratch_bytes: int  # fast memory a task may use
    bytes_per_ns: float  # what one worker reads from memory
    flops_per_ns: float  # what one worker computes
    task_ns: float  # taking up a task and dispatching it
    event_ns: float  # from a signal to the waiting worker's first instruction
    cache_bytes: int = 0  # of the last cache before memory, which all workers share; 0: none that would keep weights from step to step
    latency_ns: float = 0.0  # from a load to its value, where lanes wait for what they read; 0: it is brought before
    streams: bool = False  # has workers that stream weights and publish small results, see passes/stream.py
    bulk_copies: bool = True  # with streams: warps of their own bring weights; else those that multiply copy their share
    choices: Choices = UNCHOSEN  # how to plan for it
    machine: str = ""  # the name under which choices are kept for it; empty where none are to be looked for

    def __str__(self) -> str:
        chosen = f", {self.choices}" if str(self.choices) else ""
        return f"{self.name} {self.arch}, {self.workers} workers of {self.lanes} lanes{chosen}"
