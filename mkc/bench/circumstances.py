"""This machine, its software, a folder -> what figures were taken on, and with."""

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from mkc import __version__
from mkc.targets import cpu


def machine(device: torch.device) -> dict[str, Any]:
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        driver = said("nvidia-smi", "--query-gpu=driver_version,clocks.max.sm", "--format=csv,noheader", f"--id={device.index or 0}")
        name, clock = (*(driver or "unknown, unknown").split(", "), "unknown")[:2]
        return {"device": gpu.name, "driver": name, "max_sm_clock": clock, "sms": gpu.multi_processor_count}
    return {"device": cpu.processor(), "cpus": len(os.sched_getaffinity(0)), "torch_threads": torch.get_num_threads()}


def versions() -> dict[str, str]:
    packages = metadata.packages_distributions()
    found = {"mkc": __version__, "python": sys.version.split()[0], "cuda of torch": str(torch.version.cuda)}
    for module in ("torch", "transformers", "cupy", "triton"):
        if names := packages.get(module):
            found[module] = metadata.version(names[0])
    return found


def commit(folder: Path) -> str | None:
    """Of the checkout that a folder stands in, "+" after it where files differ from it; None outside of one."""
    here = ("git", "-C", str(folder))
    head = said(*here, "rev-parse", "HEAD")
    return head and head + ("+" if said(*here, "status", "--porcelain", "--untracked-files=no") else "")


def said(*command: str) -> str | None:
    """What a program prints, or None where it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
