"""What a GPU does for one answer: `python profiled.py MODEL DTYPE` prints how often it runs each kernel and copy, as JSON."""

import json
import sys
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch.profiler import ProfilerActivity, profile

import mkc

PROMPT, LONGEST = "98765+12345=", 7
KINDS = ("kernel", "gpu_memcpy", "gpu_memset")  # of events in PyTorch's trace that the GPU runs


def main(model: str, dtype: str) -> None:
    lm = mkc.CausalLM.from_pretrained(model, dtype=dtype, device="cuda", max_length=32)
    ids = lm.tokenizer(PROMPT)["input_ids"]
    lm.generate_ids(ids, LONGEST)  # which loads the kernel
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        lm.generate_ids(ids, LONGEST)
        torch.cuda.synchronize()
    print(json.dumps(counts(seen)))


def counts(seen: profile) -> dict[str, int]:
    with TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        seen.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    return Counter(event["name"].partition(" (")[0] for event in events if event.get("cat") in KINDS)


if __name__ == "__main__":
    main(*sys.argv[1:])
