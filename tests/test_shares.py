"""bench/shares: what it says workers read is what their loaders bring."""

import pytest

pytest.importorskip("transformers")
from mkc.bench.shares import planned, shares, table
from mkc.targets import cuda


def test_shares_are_what_the_loaders_of_each_worker_bring() -> None:
    program = planned("tiny", cuda.target(arch="sm_90a", workers=5), 64)
    found, streams = shares(program), program.streams
    assert streams is not None
    for worker, (begin, end) in enumerate(zip(streams.bounds, streams.bounds[1:], strict=False)):
        assert sum(row[worker] for _, row in found) == streams.records["fragments"][begin:end].sum()
    assert [line.split()[0] for line in table(found).splitlines()[-2:]] == ["layer", "step"]
