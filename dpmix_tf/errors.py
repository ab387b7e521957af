"""Errors a user can act on: what was given, what was expected, what to do.

The command-line programs print these without a traceback; any other error is a bug and
keeps its traceback. Every package may import this module; it imports none of them.
"""


class DPMixError(ValueError):
    """Explains a mistake in arguments, data, configuration or files."""


class BudgetExhaustedError(DPMixError):
    """An update was requested after the plan's last one."""


class DivergedError(DPMixError):
    """Weights are no longer finite; the budget spent so far remains spent."""
