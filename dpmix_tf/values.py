"""Frozen values hold Python's own numbers and texts, whatever they were given."""

import dataclasses
from typing import Any

import numpy as np


def hold_plain_values(instance: Any) -> None:
    """Makes a frozen dataclass's numpy numbers and texts Python's, which JSON takes.

    For __post_init__: np.int64(4) becomes 4, np.str_("mixup") becomes "mixup".
    """
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        if isinstance(value, np.generic):
            object.__setattr__(instance, field.name, value.item())
