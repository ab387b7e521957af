"""Matplotlib without a screen."""

from types import ModuleType


def pyplot() -> ModuleType:
    """Imports matplotlib.pyplot for drawing to files, which takes a second."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
