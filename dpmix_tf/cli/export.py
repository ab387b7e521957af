"""Exports a trained model, with its privacy card, for use elsewhere.

python bin/export.py --workdir=runs/digits --output=models/digits
python bin/export.py --workdir=runs/digits --output=digits.keras --weights=raw

If --output is a folder, a SavedModel for TensorFlow Serving is written there: the next
free version in the folder, or the version named (models/digits/3). NAME.keras is the
Keras network, NAME.tflite a LiteRT model. The privacy card is in the SavedModel's
assets.extra, or beside the file: JSON for machines, Markdown, and HTML that prints to
one page. serving/README.md describes the model's inputs and outputs.

What only you know of the release, such as who is responsible for it, goes into
config.card; bin/train.py with the run's --workdir writes it down, after training too.

A run with a chosen seed (config.seed) has no guarantee: it is exported only with
--research, and its card begins with a warning.
"""

import shlex
import sys

from absl import flags

from dpmix_tf.cli import common
from dpmix_tf.cli.startup import start_tensorflow
from dpmix_tf.files import local_path

_WORKDIR = common.define_workdir("The --workdir of a training run, finished or not.")
_OUTPUT = flags.DEFINE_string(
    "output", None, "Folder of versions, or a version in it, or NAME.keras/.tflite."
)
_WEIGHTS = flags.DEFINE_enum(
    "weights", "ema", ["ema", "raw"], "Averaged weights, or those of the last update."
)
_DATA_NAME = flags.DEFINE_string(
    "data_name", None, "Name of the training data on the card; default: the config's."
)
_AUDIT = flags.DEFINE_string(
    "audit", None, "An audit.json of bin/audit.py by this run's plan, for the card."
)
_EVALUATION = flags.DEFINE_string(
    "evaluation", None, "What bin/evaluate.py --by=... printed of it, for the card."
)
_RESEARCH = flags.DEFINE_bool(
    "research", False, "Export a run with a chosen seed, which has no guarantee."
)


def _main(argv: list[str]) -> None:
    common.require(workdir=_WORKDIR.value, output=_OUTPUT.value)
    start_tensorflow()
    from dpmix_tf.serving.export import export_file, export_saved_model

    output = local_path(_OUTPUT.value, "--output")
    export = export_file if output.suffix else export_saved_model
    exported = export(
        _WORKDIR.value,
        output,
        weights=_WEIGHTS.value,
        research=_RESEARCH.value,
        data_name=_DATA_NAME.value,
        audit=_AUDIT.value,
        evaluation=_EVALUATION.value,
    )
    print(f"Exported, read back and compared: {exported}")
    if exported.is_dir():
        card = shlex.quote(f"--card={exported}")
        print(f"Its privacy card: python bin/privacy.py {card}")
    else:
        print(f"Its privacy card: {exported}.privacy_card.md")


def main() -> None:
    """Entry point."""
    common.run(_main, sys.modules[__name__])
