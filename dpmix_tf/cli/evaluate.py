"""Measures a trained model's test accuracy with raw and averaged weights.

python bin/evaluate.py --workdir=runs/digits
"""

import json
import sys

from absl import flags

from dpmix_tf.cli import common
from dpmix_tf.cli.startup import start_tensorflow
from dpmix_tf.errors import DPMixError

_WORKDIR = common.define_workdir("The --workdir of a training run.")
_SPLIT = flags.DEFINE_enum(
    "split", "test", ["test", "validation"], "Examples to evaluate on."
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Where the data is now; default: where it was for training."
)


def _main(argv: list[str]) -> None:
    common.require(workdir=_WORKDIR.value)
    start_tensorflow()
    from dpmix_tf.training.evaluation import make_predict, measure_accuracy
    from dpmix_tf.training.restore import restore_data, restore_network

    result: dict[str, object] = {"split": _SPLIT.value}
    source = None
    for weights in ("raw", "ema"):
        network, metadata = restore_network(_WORKDIR.value, weights=weights)
        if source is None:
            dataset = restore_data(_WORKDIR.value, metadata, data_dir=_DATA_DIR.value)
            source = getattr(dataset, _SPLIT.value)
            if source is None:
                raise DPMixError(
                    "The run kept no validation examples "
                    "(data.validation_fraction = 0). Use --split=test."
                )
            result |= {"examples": len(source), "updates": metadata["updates"]}
        accuracy = measure_accuracy(make_predict(network), source)
        name = f"{_SPLIT.value}_accuracy" + ("_ema" if weights == "ema" else "")
        result[name] = round(accuracy.overall, 6)
    print(json.dumps(result, indent=2))


def main() -> None:
    """Entry point."""
    common.run(_main, sys.modules[__name__])
