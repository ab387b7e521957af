"""Lets --config.field=None empty a field that may be empty."""

from typing import Any

from absl import flags
from ml_collections import config_dict, config_flags


class _OrNone(flags.ArgumentParser):
    """Another parser, but for the word None."""

    def __init__(self, inner: flags.ArgumentParser):
        self._inner = inner
        self.syntactic_help = inner.syntactic_help

    def parse(self, argument: Any) -> Any:
        return None if argument == "None" else self._inner.parse(argument)

    def flag_type(self) -> str:
        return self._inner.flag_type()


def accept_none() -> None:
    """Makes the flags of all configs take None for a number or a text."""
    for kind, parser in (
        (float, flags.FloatParser()),
        (int, flags.IntegerParser()),
        (str, flags.ArgumentParser()),
    ):
        config_flags.register_flag_parser_for_type(kind, _OrNone(parser))


def refuse_none(flag: flags.Flag) -> None:
    """Refuses a None for a field that has to have a value.

    Args:
      flag: a config's, parsed.

    Raises:
      ValueError: names the field.
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
