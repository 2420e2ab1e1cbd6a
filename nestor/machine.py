"""What this program runs on, in words."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

import torch


def here(device: torch.device) -> str:
    """What does the work of a network on this device: the accelerator, or the processor and how many threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{processor()} with {threads} thread{'s' * (threads > 1)}" if device.type == "cpu" else device.type


@cache
def processor(listing: Path = Path("/proc/cpuinfo")) -> str:
    """The name of the processor, as the system lists it."""
    if listing.is_file():
        for line in listing.read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name" and value.strip():
                return value.strip()
    return platform.processor() or platform.machine() or "unknown"
