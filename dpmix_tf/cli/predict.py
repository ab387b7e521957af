"""Classifies images on disk with a trained model.

python bin/predict.py --workdir=runs/digits scan1.png scan2.jpg
python bin/predict.py --workdir=runs/digits --format=json photos/
"""

import json
import sys
from pathlib import Path

from absl import flags

from dpmix_tf.cli import common
from dpmix_tf.errors import DPMixError

_WORKDIR = common.define_workdir("The --workdir of a training run.")
_WEIGHTS = flags.DEFINE_enum(
    "weights", "ema", ["ema", "raw"], "Averaged weights, or the last update's."
)
_FORMAT = flags.DEFINE_enum("format", "table", ["table", "json"], "How to print.")
_TOP = flags.DEFINE_integer("top", 1, "How many classes an image.", lower_bound=1)


def _main(argv: list[str]) -> None:
    common.require(workdir=_WORKDIR.value)
    import numpy as np
    import tensorflow as tf

    from dpmix_tf.images import image_files, read_image
    from dpmix_tf.training import restore_network
    from dpmix_tf.views.maker import as_float

    paths = [path for name in argv for path in image_files(Path(name))]
    if not paths:
        raise DPMixError("No images: name JPEG or PNG files, or folders of them.")
    network, metadata = restore_network(_WORKDIR.value, weights=_WEIGHTS.value)
    shape = tuple(metadata["image_shape"])
    names = metadata["class_names"]
    results = []
    for path in paths:
        result: dict[str, object] = {"path": str(path)}
        try:
            image = read_image(path, shape)
        except DPMixError as error:
            results.append(result | {"error": str(error)})
            continue
        logits = network(as_float(image[np.newaxis]), training=False)
        probabilities = tf.nn.softmax(logits)[0].numpy()
        best = np.argsort(-probabilities)[: _TOP.value]
        results.append(
            result
            | {
                "classes": [names[index] for index in best],
                "probabilities": [round(float(probabilities[i]), 6) for i in best],
            }
        )
    if _FORMAT.value == "json":
        print(json.dumps(results, indent=2))
    else:
        _print_table(results)
    if any("error" in result for result in results):
        sys.exit(1)


def _print_table(results: list[dict]) -> None:
    width = max(len(result["path"]) for result in results)
    for result in results:
        if "error" in result:
            print(f"{result['path']:<{width}}  error: {result['error']}")
            continue
        ranked = zip(result["classes"], result["probabilities"], strict=True)
        cells = "  ".join(f"{name} {value:.4f}" for name, value in ranked)
        print(f"{result['path']:<{width}}  {cells}")


def main() -> None:
    """Entry point."""
    common.run(_main, sys.modules[__name__])
