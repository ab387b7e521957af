"""Makes frozen dataclasses hold plain Python numbers and strings."""

import dataclasses
from typing import Any

import numpy as np


def hold_plain_values(instance: Any) -> None:
    """Converts a frozen dataclass's numpy scalars to Python's, which JSON accepts.

    For __post_init__: np.int64(4) becomes 4, np.str_("mixup") becomes "mixup".
    """
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        if isinstance(value, np.generic):
            object.__setattr__(instance, field.name, value.item())
