"""What runs compute-sanitizer: it chooses a test of every operator; and on a GPU no tool finds anything."""

from pathlib import Path

import pytest
from sanitizers import compute

from mkc.ops import registry
from mkc.targets import cuda


def test_every_operator_with_tests_is_looked_at() -> None:
    chosen = compute.tests()
    assert len(chosen) == sum(map(len, compute.TESTS.values()))
    files = {path.stem.removeprefix("test_") for path in Path(compute.ROOT, "tests/ops").glob("test_*.py")}
    assert files - {name for name, op in registry().items() if op.streaming} == set(compute.TESTS)  # whose kernels stream


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(cuda.device_count() == 0 or compute.found() is None, reason="no GPU, or no compute-sanitizer")
def test_compute_sanitizer_finds_nothing() -> None:
    assert compute.main([]) == 0
