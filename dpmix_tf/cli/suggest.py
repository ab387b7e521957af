r"""Suggests a run's settings by rules that look at no data, so that none is tuned.

  python bin/suggest.py --num_examples=50000 --epsilon=3 --network=scattering \
      --minutes=10 --image_size=32 --data=cifar10 --output=suggested.py
  python bin/train.py --config=suggested.py --workdir=runs/suggested

Prints every setting with its reason, and writes them as a configuration file.
"""

import os
import shlex
import sys

from absl import flags

from dpmix_tf.cli import common
from dpmix_tf.cli.startup import start_tensorflow
from dpmix_tf.errors import DPMixError
from dpmix_tf.files import local_path, write_text_atomic

_NUM_EXAMPLES = flags.DEFINE_integer(
    "num_examples", None, "Number of private training examples, N."
)
_EPSILON = flags.DEFINE_float("epsilon", None, "The privacy budget.")
_DELTA = flags.DEFINE_float(
    "delta", None, "Delta; default: the largest power of ten at or below 1 / (10 N)."
)
_NETWORK = flags.DEFINE_string(
    "network", None, "convnet, wide_resnet, scattering or pretrained."
)
_MINUTES = flags.DEFINE_float("minutes", None, "Time for training.")
_IMAGE_SIZE = flags.DEFINE_integer("image_size", None, "Pixels a side of an image.")
_SPEED = flags.DEFINE_float(
    "views_per_second",
    None,
    "As measured on your machine; default: what was measured on two cores.",
)
_DATA = flags.DEFINE_string("data", "image_folder", "Name of the data set.")
_OUTPUT = flags.DEFINE_string(
    "output", None, "Configuration file to write, such as suggested.py."
)


def _main(argv: list[str]) -> None:
    common.require(
        num_examples=_NUM_EXAMPLES.value,
        epsilon=_EPSILON.value,
        network=_NETWORK.value,
        minutes=_MINUTES.value,
        image_size=_IMAGE_SIZE.value,
    )
    output = None if _OUTPUT.value is None else local_path(_OUTPUT.value, "--output")
    if output is not None and output.exists():
        raise DPMixError(
            f"{output} exists, and is not overwritten. Choose another --output, or "
            "remove it."
        )
    start_tensorflow()
    from dpmix_tf.data import DATASETS
    from dpmix_tf.training import suggest

    if _DATA.value not in DATASETS:
        raise DPMixError(
            f"--data must be one of {', '.join(DATASETS)}; received: {_DATA.value!r}."
        )
    choices = suggest.suggest(
        num_examples=_NUM_EXAMPLES.value,
        epsilon=_EPSILON.value,
        network=_NETWORK.value,
        minutes=_MINUTES.value,
        delta=_DELTA.value,
        image_size=_IMAGE_SIZE.value,
        views_per_second=_SPEED.value,
    )
    print(suggest.to_text(choices))
    if output is None:
        return
    given = (
        flag
        for flag in (
            _NUM_EXAMPLES,
            _EPSILON,
            _DELTA,
            _NETWORK,
            _MINUTES,
            _IMAGE_SIZE,
            _SPEED,
            _DATA,
        )
        if flag.value is not None
    )
    flags_given = " ".join(f"--{flag.name}={flag.value}" for flag in given)
    command = f"python bin/suggest.py {flags_given}"
    text = suggest.to_config_file(
        choices, data=_DATA.value, image_size=_IMAGE_SIZE.value, command=command
    )
    write_text_atomic(output, text)
    where = shlex.quote(os.fspath(output))
    print(f"\nWritten. To train: python bin/train.py --config={where} --workdir=...")


def main() -> None:
    """Entry point."""
    common.run(_main, sys.modules[__name__])
