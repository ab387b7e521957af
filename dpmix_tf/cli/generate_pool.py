r"""Generates a pool of public images for DP-Mix_Diff.

  python bin/generate_pool.py --config=configs/digits_diff.py
  python bin/generate_pool.py --config=configs/cifar10_diff.py --shard=3/16
  python bin/generate_pool.py --config=configs/digits_diff.py --import_from=my_digits
  python bin/generate_pool.py --config=configs/digits_diff.py --repair

If interrupted, rerun the same command: it generates only what is missing.

`config.pool` sets what is generated, how many images and how; the classes and the image
size are those of `config.data`, whose examples are never read (but for
`--import_left_out`, which reads those that are not trained on).
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from dpmix_tf.cli import common
from dpmix_tf.errors import DPMixError
from dpmix_tf.files import local_path

_CONFIG = common.define_config()
_SHARD = flags.DEFINE_string(
    "shard", "1/1", "Which part of the work to do, such as 3/16: the third of sixteen."
)
_IMPORT = flags.DEFINE_string(
    "import_from", None, "Instead of generating, import a folder of public images."
)
_LEFT_OUT = flags.DEFINE_bool(
    "import_left_out",
    False,
    "Instead of generating, take config.pool.images_per_class images of each class "
    "among the training examples that config.data.train_examples leaves out. For "
    "experiments that treat part of a data set as public.",
)
_REPAIR = flags.DEFINE_bool(
    "repair", False, "First remove images that are broken or have been changed."
)
_MERGE = flags.DEFINE_list(
    "merge", None, "Instead of generating, merge these pools into config.pool.path."
)


def _main(argv: list[str]) -> None:
    common.require(config=_CONFIG.value)
    from dpmix_tf.data import describe_settings
    from dpmix_tf.synthetic import fill, maintenance

    settings = _CONFIG.value.pool.to_dict()
    data = _CONFIG.value.data.to_dict()
    if settings["path"] is None:
        raise DPMixError("The pool needs a folder: set --config.pool.path=FOLDER.")
    folder = local_path(settings["path"], "pool.path")
    if _MERGE.value:
        maintenance.merge(_MERGE.value, folder)
        return _report(folder)
    if _REPAIR.value and folder.exists():
        removed = maintenance.repair(folder)
        print(f"Removed {len(removed)} broken or changed files. {' '.join(removed)}")
    if _LEFT_OUT.value:
        _import_left_out(folder, data, settings["images_per_class"])
        return _report(folder)
    class_names, image_shape = describe_settings(data)
    if _IMPORT.value:
        fill.import_folder(folder, _IMPORT.value, class_names, image_shape)
    else:
        part, parts = common.parse_shard(_SHARD.value)
        fill.generate(folder, settings, class_names, image_shape, part, parts)
    return _report(folder)


def _import_left_out(folder: Path, data: dict[str, Any], per_class: int) -> None:
    from dpmix_tf.data import load_left_out
    from dpmix_tf.synthetic import fill

    del data["validation_fraction"]
    source = load_left_out(**data)
    labels = source.examine().labels
    chosen = [
        np.flatnonzero(labels == label)[:per_class]
        for label in range(len(source.class_names))
    ]
    short = [
        name
        for name, found in zip(source.class_names, chosen, strict=True)
        if len(found) < per_class
    ]
    if short:
        raise DPMixError(
            f"data.train_examples leaves out fewer than pool.images_per_class = "
            f"{per_class} images of {', '.join(short)}. Lower one of the two."
        )
    images, labels = source.read(np.concatenate(chosen))
    fill.import_examples(folder, images, labels, source.class_names)


def _report(folder: Path) -> None:
    from dpmix_tf.synthetic.pool import read_manifest

    manifest = read_manifest(folder)
    print(
        f"{folder} holds {len(manifest['images'])} images of "
        f"{len(manifest['class_names'])} classes, "
        f"{'x'.join(map(str, manifest['image_shape']))}."
    )


def main() -> None:
    """Entry point."""
    common.run(_main, sys.modules[__name__])
