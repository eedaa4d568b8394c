"""What a GPU does for one answer: `python profiled.py MODEL DTYPE` prints how often it runs each kernel and copy, as JSON."""

import json
import sys

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

import mkc

PROMPT, LONGEST = "98765+12345=", 7


def main(model: str, dtype: str) -> None:
    lm = mkc.CausalLM.from_pretrained(model, dtype=dtype, device="cuda", max_length=32)
    ids = lm.tokenizer(PROMPT)["input_ids"]
    lm.generate_ids(ids, LONGEST)  # which loads the kernel
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        lm.generate_ids(ids, LONGEST)
        torch.cuda.synchronize()
    events = [event for event in seen.key_averages() if event.device_type is DeviceType.CUDA]
    print(json.dumps({event.key.partition(" (")[0]: event.count for event in events}))


if __name__ == "__main__":
    main(*sys.argv[1:])
