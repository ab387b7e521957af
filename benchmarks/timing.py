"""Takes turns with what is compared, and words what it took."""

import statistics
import time


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
