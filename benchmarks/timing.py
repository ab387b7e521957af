"""Takes turns with what is compared, and words what it took, and on what machine."""

import platform
import statistics
import time
from importlib import metadata
from pathlib import Path

import psutil


def take_turns(steps, repeats):
    """Seconds of each, A B A B; the first two turns do not count."""
    seconds = {name: [] for name in steps}
    for turn in range(repeats + 2):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            if turn >= 2:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def spread(values):
    """Median and range, in milliseconds."""
    low, high = 1e3 * min(values), 1e3 * max(values)
    return f"{1e3 * statistics.median(values):.1f} ({low:.1f}-{high:.1f})"


def machine():
    """What the numbers were measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    memory = psutil.virtual_memory().total / 2**30
    versions = ", ".join(
        f"{name} {metadata.version(name)}" for name in ("tensorflow", "keras", "numpy")
    )
    return (
        f"{psutil.cpu_count()} logical cores of {models[0] if models else 'a CPU'}, "
        f"{memory:.0f} GiB of memory, no GPU; {platform.system()}, Python "
        f"{platform.python_version()}, {versions}."
    )
