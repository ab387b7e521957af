"""Matplotlib without a screen."""

from types import ModuleType


def pyplot() -> ModuleType:
    """Imports matplotlib.pyplot, to draw into files; it costs a second."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
