"""What the machine has for this process: processor cores and memory."""

import os
from pathlib import Path


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_memory() -> int:
    """The most memory that this process has had resident, in bytes; 0 where the system does not tell."""
    return _kibibytes("/proc/self/status", "VmHWM") * 1024


def resident_memory(process: int | str = "self") -> int:
    """The memory that a process has resident now, in bytes; 0 where the system does not tell."""
    return _kibibytes(f"/proc/{process}/status", "VmRSS") * 1024


def free_memory() -> int:
    """Memory that programs can still get, in bytes; 0 where the system does not tell."""
    return _kibibytes("/proc/meminfo", "MemAvailable") * 1024


def _kibibytes(file: str, name: str) -> int:
    try:
        lines = Path(file).read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
    except (OSError, StopIteration):
        return 0
