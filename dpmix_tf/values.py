"""Plain values: of frozen dataclasses, and of nested settings and configurations."""

import dataclasses
from collections.abc import Mapping
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


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested settings: dotted name -> value."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def without_names(config: Any) -> Any:
    """A Keras configuration without names, which Keras counts up in every process."""
    if isinstance(config, Mapping):
        return {k: without_names(v) for k, v in config.items() if k != "name"}
    if isinstance(config, (list, tuple)):
        return [without_names(each) for each in config]
    return config
