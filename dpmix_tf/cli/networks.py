"""Lets --config.network.name replace the configuration file's network."""

import inspect
import re
import sys
import typing
from typing import Any

from ml_collections import ConfigDict, config_dict

_NAME = re.compile(r"--?config\.((?:\w+\.)*)network\.name(?:=(.*))?")


def switch_network(config: Any, argv: list[str]) -> Any:
    """Gives a config the arguments of the network that the command line names.

    The arguments in a configuration file are for its own network. Where the command
    line names another, they are dropped, with a line on stderr, and replaced by that
    network's arguments at their defaults. These can be set as usual, such as by
    --config.network.depth=6, and misspelt names are still rejected.

    Args:
      config: the config from the file; it is changed in place.
      argv: the command line.

    Returns:
      The config.
    """
    for index, part in enumerate(argv):
        match = _NAME.fullmatch(part)
        if match is None or not isinstance(config, ConfigDict):
            continue
        name = match[2] if match[2] is not None else "".join(argv[index + 1 :][:1])
        holder = config
        for field in match[1].split(".")[:-1]:  # in `base` for an experiment
            holder = holder.get(field, ConfigDict())
        if "network" in holder:
            _switch(holder, name)
    return config


def _switch(config: ConfigDict, name: str) -> None:
    from dpmix_tf.models import NETWORKS, network_arguments  # slow: TensorFlow

    old = config.network.to_dict()
    if name not in NETWORKS or name == old["name"]:
        return
    arguments = {n: _value(p) for n, p in network_arguments(name).items()}
    with config.unlocked():
        config.network = ConfigDict({"name": name, **arguments})
    dropped = ", ".join(f"{k}={v!r}" for k, v in old.items() if k != "name")
    print(
        f"note: the network is {name} instead of the file's {old['name']}"
        + (f", whose arguments are dropped: {dropped}" if dropped else ""),
        file=sys.stderr,
    )


def _value(parameter: inspect.Parameter) -> Any:
    """Returns an argument's default, or a placeholder of its type if it has none."""
    if parameter.default not in (None, inspect.Parameter.empty):
        return parameter.default
    kinds = typing.get_args(parameter.annotation) or (parameter.annotation,)
    return config_dict.placeholder(next(k for k in kinds if k is not type(None)))
