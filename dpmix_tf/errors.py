"""Errors a user can act on: what was given, what was expected, what to do.

The command lines print these without a traceback; everything else is a bug and keeps
its traceback. Every package may import this module; it imports none of them.
"""


class DPMixError(ValueError):
    """A mistake in arguments, data, configuration or files, explained."""


class BudgetExhaustedError(DPMixError):
    """An update was asked for after the plan's last one."""


class DivergedError(DPMixError):
    """Weights stopped being finite; what was spent stays spent."""
