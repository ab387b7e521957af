"""What the commands share: flags in --help, and errors that a user can act on."""

import contextlib
import os
import select
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

from absl import app, flags, logging
from ml_collections import config_flags

from dpmix_tf.cli import optional
from dpmix_tf.cli.networks import switch_network
from dpmix_tf.cli.startup import ours_or_serious, start_tensorflow
from dpmix_tf.errors import DPMixError
from dpmix_tf.files import local_path


def define_config() -> flags.FlagHolder:
    """Defines --config: a file in configs/, with fields set by --config.field=value."""
    optional.accept_none()
    holder = config_flags.DEFINE_config_file(
        "config",
        None,
        "Configuration file, such as configs/digits.py. Its fields can be set on the "
        "command line: --config.privacy.epsilon=4. Configuration files are Python code "
        "that is executed: use only those you trust.",
        lock_config=True,
    )
    parser = flags.FLAGS["config"].parser
    load = parser.parse
    # Before fields are set, since they may belong to another network.
    parser.parse = lambda path: switch_network(load(path), sys.argv)
    return holder


def define_workdir(purpose: str) -> flags.FlagHolder[str | None]:
    """Defines --workdir."""
    return flags.DEFINE_string("workdir", None, purpose)


def require(**given) -> None:
    """Raises an error unless all the named flags are given."""
    for name, value in given.items():
        if value is None:
            raise DPMixError(f"--{name} is missing. See --help.")


def parse_shard(text: str) -> tuple[int, int]:
    """Parses --shard=i/n, the i-th of n parts of the work, 1 <= i <= n."""
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise DPMixError(
            f"--shard must be i/n with 1 <= i <= n, such as 3/16; received: {text!r}."
        )
    return int(part), int(parts)


def run(main: Callable[[list[str]], None], module: ModuleType | object) -> None:
    """Runs a command: parses flags; our errors become one message and exit status 2.

    Args:
      main: takes the positional arguments.
      module: the command's module, whose docstring and flags become --help.
    """
    name = module.__name__  # type: ignore[union-attr]
    for owner in (__name__, name):
        for flag in flags.FLAGS.get_key_flags_for_module(owner):
            flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    sys.modules["__main__"].__doc__ = module.__doc__

    def guarded(argv: list[str]) -> None:
        try:
            main(argv[1:])
        except DPMixError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)

    logging.get_absl_handler().addFilter(ours_or_serious)
    try:
        with _quiet_without_readers():
            app.run(guarded, flags_parser=_parse)
    except KeyboardInterrupt as stop:  # also while flags are parsed
        print(f"\n{str(stop) or 'Interrupted.'}", file=sys.stderr)
        sys.exit(130)


@contextlib.contextmanager
def _quiet_without_readers() -> Iterator[None]:
    """Ends the process quietly once nobody reads its output, as in `... | head`.

    It ends as if the signal SIGPIPE had killed it, which Python ignores. The signal
    itself would also kill a run whose connection to another machine breaks.
    """
    streams = [stream for stream in (sys.stdout, sys.stderr) if stream]
    try:
        try:
            yield
        finally:
            for stream in streams:
                stream.flush()  # otherwise Python does so at exit, and complains
    except BrokenPipeError:
        poll = select.poll()
        for stream in streams:
            poll.register(stream, 0)
        if not any(event & select.POLLERR for _, event in poll.poll(0)):
            raise  # another pipe, or a connection
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in streams:
            os.dup2(nowhere, stream.fileno())
        sys.exit(128 + signal.SIGPIPE)


def _parse(argv: list[str]) -> list[str]:
    """Parses flags and runs the configuration file."""
    argv = _joined(argv)
    fields = [part for part in argv[1:] if part.startswith("--config")]
    with _refusals_explained(fields):
        argv = [_with_config_file(part) for part in argv]
    if fields:
        start_tensorflow()  # configuration files import dpmix_tf
    with _refusals_explained(fields):
        rest = app.parse_flags_with_usage(argv)
        if "config" in flags.FLAGS:
            optional.refuse_none(flags.FLAGS["config"])
        return rest


@contextlib.contextmanager
def _refusals_explained(fields: list[str]) -> Iterator[None]:
    """Explains why --config was refused; ml_collections raises any bare exception."""
    try:
        yield
    except BrokenPipeError:  # while --help was printed
        raise
    except (
        AttributeError,
        ImportError,
        KeyError,
        TypeError,
        ValueError,
        OSError,
    ) as error:
        text = str(error).strip("'\"").replace("\\n", " ").replace("\\'", "'")
        print(
            f"error: the configuration is invalid: {text}\n"
            f"It was given by: {shlex.join(f for f in fields if '.seed' not in f)}\n"
            "Fields and their defaults are in dpmix_tf/training/config.py.",
            file=sys.stderr,
        )
        sys.exit(2)


def _with_config_file(part: str) -> str:
    """Expands `~` in --config=~/x.py, and lets the file import its neighbours.

    Raises:
      OSError: there is no such file.
    """
    flag, _, value = part.partition("=")
    if flag != "--config":
        return part
    given = str(local_path(value, "--config"))
    file = Path(given.partition(":")[0])  # configs/pools.py:eurosat
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}")
    # Lets it say `from configs import digits`; it is in configs/ or a folder below.
    sys.path += map(str, file.resolve().parents[1:3])
    return f"{flag}={given}"


def _joined(argv: list[str]) -> list[str]:
    """Rewrites `--config path` as `--config=path`; absl accepts both."""
    joined: list[str] = []
    for part in argv:
        last = joined[-1] if joined else ""
        if last.startswith("--config") and "=" not in last and part[:1] != "-":
            joined[-1] = f"{last}={part}"
        else:
            joined.append(part)
    return joined
