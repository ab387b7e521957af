"""Lets --config.field=None clear a field that may be empty."""

from typing import Any

from absl import flags
from ml_collections import config_dict, config_flags


class _OrNone(flags.ArgumentParser):
    """Wraps another parser and accepts the word None as well."""

    def __init__(self, inner: flags.ArgumentParser):
        self._inner = inner
        self.syntactic_help = inner.syntactic_help

    def parse(self, argument: Any) -> Any:
        return None if argument == "None" else self._inner.parse(argument)

    def flag_type(self) -> str:
        return self._inner.flag_type()


def accept_none() -> None:
    """Makes the flags of all configs accept None for numbers and strings."""
    for kind, parser in (
        (float, flags.FloatParser()),
        (int, flags.IntegerParser()),
        (str, flags.ArgumentParser()),
    ):
        config_flags.register_flag_parser_for_type(kind, _OrNone(parser))


def refuse_none(flag: flags.Flag) -> None:
    """Refuses None for a field that must have a value.

    Args:
      flag: the parsed flag of a config.

    Raises:
      ValueError: a field needs a value; the message names it.
    """
    if flag.value is None:  # no --config was given
        return
    for path, value in flag.override_values.items():
        *parts, last = path.split(".")
        owner = flag.value
        for part in parts:
            owner = owner[part]
        # Only a placeholder keeps its type.
        if (
            value is None
            and isinstance(owner, config_dict.ConfigDict)
            and owner.get_type(last) is type(None)
        ):
            raise ValueError(f"{path} needs a value, received: None")
