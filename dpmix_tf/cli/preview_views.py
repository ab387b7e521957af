"""Draws the views that a config makes of one example, as a PNG.

  python bin/preview_views.py --config=configs/digits.py --output=views.png

The picture shows a private image: protect it like the data itself.
"""

import sys

from absl import flags

from dpmix_tf.cli import common
from dpmix_tf.errors import DPMixError

_CONFIG = common.define_config()
_OUTPUT = flags.DEFINE_string("output", "views.png", "PNG file to write.")
_INDEX = flags.DEFINE_integer(
    "index", 0, "Index of the training example, or person.", lower_bound=0
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the views.", lower_bound=0)


def _main(argv: list[str]) -> None:
    common.require(config=_CONFIG.value)
    import numpy as np

    from dpmix_tf.data import load_dataset
    from dpmix_tf.training.build import load_pool
    from dpmix_tf.views import make_views
    from dpmix_tf.views.preview import draw_views

    config = _CONFIG.value
    dataset = load_dataset(**config.data.to_dict())
    if _INDEX.value >= len(dataset.train):
        raise DPMixError(
            f"--index must be below {len(dataset.train)}, the number of training "
            f"examples; received: {_INDEX.value}."
        )
    views = make_views(config.views.to_dict(), load_pool(config, dataset))
    images, labels = dataset.train.read(np.array([_INDEX.value]))
    draw_views(
        views,
        images[0],
        labels[0],
        dataset.class_names,
        seed=_SEED.value,
        path=_OUTPUT.value,
    )
    print(f"Picture of a private example written to {_OUTPUT.value}")


def main() -> None:
    """Entry point."""
    common.run(_main, sys.modules[__name__])
