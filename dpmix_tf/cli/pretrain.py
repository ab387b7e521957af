r"""Trains a whole network on its pool of public images, before any private training.

  python bin/pretrain.py --config=configs/digits_diff.py \
      --config.warm_start.epochs=20 --output=runs/start
  python bin/train.py --config=configs/digits_diff.py \
      --config.warm_start.path=runs/start --workdir=runs/warm

Public images cost no privacy budget, and no private one is read: it can be done once,
elsewhere, for many runs. If interrupted, rerun the same command: it resumes. For a head
on a frozen encoder it is not needed: set config.warm_start.epochs, and train.
"""

import shlex
import sys

from absl import flags

from dpmix_tf.cli import common

_CONFIG = common.define_config()
_OUTPUT = flags.DEFINE_string(
    "output", None, "Folder for the weights; for --config.warm_start.path in training."
)


def _main(argv: list[str]) -> None:
    common.require(config=_CONFIG.value, output=_OUTPUT.value)
    from dpmix_tf.training.warm_start import pretrain

    accuracy = pretrain(_CONFIG.value, _OUTPUT.value)
    if accuracy is not None:
        print(f"{accuracy:.1%} of the last epoch's views are classified correctly.")
    where = shlex.quote(_OUTPUT.value)
    print(
        "To train, give the same settings with --config.warm_start.epochs=0\n"
        f"--config.warm_start.path={where}"
    )


def main() -> None:
    """Entry point."""
    common.run(_main, sys.modules[__name__])
