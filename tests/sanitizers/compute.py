"""NVIDIA's compute-sanitizer over operator tests on a GPU: `python tests/sanitizers/compute.py`, a few minutes, the table last.

Each tool runs the same tests, one of each operator, and looks at our kernels only. The tool is looked for on the path, in
$CUDA_HOME and in /usr/local/cuda*. Fails when a tool finds something or a test fails.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from glob import glob
from pathlib import Path

ROOT = Path(__file__).parents[2]
TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
TESTS = {
    "append": ["rows_are_written_where_the_cache_lies", "heads_of_a_long_prompt"],
    "append_pages": ["a_pool_whose_old_rows"],
    "argmax": ["long_rows_are_searched"],
    "attention": ["heads_share_keys", "many_keys_are_shared_out", "read_up_to_the_last_key"],
    "division": ["integers_are_divided"],
    "gather": ["embedding_takes_in", "an_index_outside"],
    "layer_norm": ["takes_several_dimensions"],
    "matmul": ["takes_in_the_elementwise"],
    "paged_attention": ["pages_are_read_where_they_lie"],
    "reduce": ["long_sums", "variance_takes"],
    "rms_norm": ["takes_several_dimensions"],
    "rotary": ["a_part_of_each_row"],
    "softmax": ["softmax_are_shared_out", "across_rows"],
    "views": ["repetitions_are_torchs", "parts_without_elements"],
}
ENVIRONMENT = {"MKC_TEST_DEVICE": "cuda"}
PYTEST = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")
FINDING = 66  # the exit status of the tool when it found something
SECONDS = 100  # for each tool


@dataclass(frozen=True, slots=True)
class Closing:
    """How a tool's run ended."""

    tool: str
    tests: str  # pytest's closing line
    summary: str  # the tool's
    seconds: float
    clean: bool

    def __str__(self) -> str:
        return f"| {self.tool} | {self.summary} | {self.tests} | {self.seconds:.0f} s |"


def found() -> str | None:
    """compute-sanitizer, wherever a toolkit keeps it."""
    homes = [os.environ.get("CUDA_HOME", ""), *sorted(glob("/usr/local/cuda*"), reverse=True)]
    places = [f"{home}/{inside}compute-sanitizer" for home in homes if home for inside in ("bin/", "compute-sanitizer/")]
    return shutil.which("compute-sanitizer") or next((place for place in places if os.access(place, os.X_OK)), None)


def tests() -> list[str]:
    """The first few parameters of each of TESTS, as pytest names them."""
    words = " or ".join(f"({op} and {name})" for op, names in TESTS.items() for name in names)
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "tests/ops", "-k", words]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout
    first: dict[str, str] = {}
    for name in re.findall(r"^tests/\S+::\S+$", listed, re.MULTILINE):
        first.setdefault(name.partition("[")[0], name)
    return list(first.values())


def only_ours(path: str) -> list[str]:
    """The option that leaves other libraries' kernels alone; its name has changed over the years."""
    said = subprocess.run([path, "--help"], capture_output=True, text=True, check=False).stdout
    option = next((name for name in ("--kernel-name", "--kernel-regex", "--filter") if name in said), None)
    return [option, "kns=megakernel"] if option else []


def closing(path: str, tool: str, chosen: list[str], options: list[str]) -> Closing:
    env = {**os.environ, **ENVIRONMENT, "MKC_DEADLINE": "100", "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    env["MKC_POISON"] = "0" if tool == "initcheck" else "1"  # what is poisoned has been written
    command = [path, "--tool", tool, "--error-exitcode", str(FINDING), "--print-limit", "5", *options, *PYTEST, *chosen]
    start = time.monotonic()
    try:
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=SECONDS)
        said, code = done.stdout + done.stderr, done.returncode
    except subprocess.TimeoutExpired as late:
        said, code = (late.stdout or b"").decode(errors="replace"), -1
    print(said[-6000:])
    ended = re.findall(r"^(?!=+ \w+ SUMMARY).*\d+ (?:passed|failed|error).*$", said, re.MULTILINE)
    summed = re.findall(r"^=+ (?:ERROR|RACECHECK) SUMMARY:.*$", said, re.MULTILINE)
    tests_said = ended[-1].strip("= ") if ended else f"did not end in {SECONDS} s" if code == -1 else "no tests ran"
    return Closing(tool, tests_said, summed[-1].strip("= ") if summed else "no summary", time.monotonic() - start, code == 0)


def main(tools: list[str]) -> int:
    path, chosen = found(), tests()
    if path is None:
        print("compute-sanitizer is not on the path, in $CUDA_HOME or in /usr/local/cuda*; it comes with the CUDA toolkit")
        return 2
    options = only_ours(path)
    print(f"{path} {' '.join(options)}\n" + "\n".join(chosen))
    subprocess.run([*PYTEST, *chosen], cwd=ROOT, env={**os.environ, **ENVIRONMENT}, check=False)  # builds what the tools then find kept
    ran = [closing(path, tool, chosen, options) for tool in tools or TOOLS]
    print("| tool | summary | tests | time |\n|---|---|---|---|", *ran, sep="\n")
    return 0 if all(run.clean for run in ran) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
