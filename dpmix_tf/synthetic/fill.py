"""Fills a pool: from a generator by name, or from a folder of the user's images."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from dpmix_tf.errors import DPMixError
from dpmix_tf.files import local_path
from dpmix_tf.images import class_folders, image_files, read_image
from dpmix_tf.synthetic.glyphs import glyph
from dpmix_tf.synthetic.leaves import dead_leaves
from dpmix_tf.synthetic.pool import MANIFEST, PoolWriter

# Generators that draw one image at a time: (class name, seed, image shape) -> image.
_DRAWN = {
    "glyphs": glyph,
    "leaves": lambda _, seed, image_shape: dead_leaves(1, image_shape, seed=seed)[0],
}
GENERATORS = (*_DRAWN, "stable_diffusion")

# Leaves show no class of any data set: their pool has this one.
_UNLABELLED = ("leaves",)


def generate(
    folder: Path,
    settings: Mapping[str, Any],
    class_names: Sequence[str],
    image_shape: tuple[int, int, int],
    part: int = 1,
    parts: int = 1,
) -> None:
    """Generates the images that a pool lacks, of one part of the work.

    Long because each check comes before the first image is made.

    Args:
      folder: the pool.
      settings: `config.pool` as a dict, see training/config.py.
      class_names: the data set's class names. "leaves" ignores them: its pool has one
        class, "leaves", and does for whatever needs no labels.
      image_shape: the data set's (H, W, C).
      part: which part of the work to do, counted from 1.
      parts: number of parts; they may fill one folder, or several to be merged later.

    Raises:
      DPMixError: settings, weights or folder are not usable; nothing is overwritten.
    """
    name = settings["generator"]
    if name not in GENERATORS:
        raise DPMixError(
            f"pool.generator must be one of {', '.join(GENERATORS)}; received: "
            f"{name!r}."
        )
    if settings["images_per_class"] < 1:
        raise DPMixError(
            "pool.images_per_class must be 1 or more, received: "
            f"{settings['images_per_class']}."
        )
    if name == "leaves":
        class_names = _UNLABELLED
    work = [
        (class_name, settings["seed"] + index)
        for index in range(settings["images_per_class"])
        for class_name in class_names
    ][part - 1 :: parts]
    if name in _DRAWN:
        draw = _DRAWN[name]
        for class_name in class_names:
            draw(class_name, 0, image_shape)  # raises for a class it cannot draw
        writer = PoolWriter(
            folder,
            class_names=class_names,
            image_shape=image_shape,
            generator={"name": name},
        )
        for class_name, seed in tqdm(work, unit="image"):
            if not writer.path(class_name, seed).exists():
                image = draw(class_name, seed, image_shape)
                writer.add(class_name, seed, image, {"generator": name})
    else:
        # Stable Diffusion takes seconds to import and gigabytes to build.
        from dpmix_tf.synthetic import stable_diffusion

        for template in settings["prompts"]:
            if "{name}" not in template:
                raise DPMixError(
                    f"pool.prompts must contain {{name}} for the class; received: "
                    f"{template!r}."
                )
        generator = stable_diffusion.Generator(settings)
        if not (folder / MANIFEST).exists():
            print(stable_diffusion.licence_notice(settings["version"]))
        writer = PoolWriter(
            folder,
            class_names=class_names,
            image_shape=image_shape,
            generator=generator.description(),
        )
        prompted = [
            (
                class_name,
                seed,
                stable_diffusion.prompt_for(
                    class_name,
                    seed - settings["seed"],
                    settings["prompts"],
                    settings["class_prompts"],
                ),
            )
            for class_name, seed in work
        ]
        stable_diffusion.fill(writer, generator, prompted, settings["batch_size"])
    writer.finish()


def import_folder(
    folder: Path,
    source: str | Path,
    class_names: Sequence[str],
    image_shape: tuple[int, int, int],
) -> None:
    """Makes a pool of the user's own public images, one subfolder per class.

    Args:
      folder: the pool.
      source: folder of images; its subfolders must be the classes.
      class_names: the data set's class names.
      image_shape: (H, W, C) to convert and resize to, with antialiasing.

    Raises:
      DPMixError: the classes do not match, or an image cannot be read.
    """
    source = local_path(source, "The folder to import")
    found = set(class_folders(source)) if source.is_dir() else set()
    if found != set(class_names):
        raise DPMixError(
            f"The subfolders of {source} must be the data set's classes; missing "
            f"{sorted(set(class_names) - found)}, unexpected "
            f"{sorted(found - set(class_names))}."
        )
    writer = _importer(folder, class_names, image_shape)
    for class_name in class_names:
        paths = image_files(source / class_name)
        for path in tqdm(paths, desc=class_name, unit="image"):
            data = path.read_bytes()
            digest = hashlib.sha256(data).hexdigest()
            pixels = read_image(path, image_shape)
            record = {
                "generator": "import",
                "source": f"{class_name}/{path.name}",
                "source_sha256": digest,
            }
            # Numbered by content, so importing again adds no duplicates.
            writer.add(class_name, int(digest[:12], 16), pixels, record)
    writer.finish()


def import_examples(
    folder: Path, images: np.ndarray, labels: np.ndarray, class_names: Sequence[str]
) -> None:
    """Makes a pool of labelled images in memory; adding them again changes nothing.

    Args:
      folder: the pool.
      images: uint8 [n,H,W,C].
      labels: integers [n].
      class_names: the data set's class names.
    """
    writer = _importer(folder, class_names, images.shape[1:])
    for image, label in tqdm(
        zip(images, labels, strict=True), total=len(images), unit="image"
    ):
        digest = hashlib.sha256(image.tobytes()).hexdigest()
        record = {"generator": "import", "source_sha256": digest}
        writer.add(class_names[label], int(digest[:12], 16), image, record)
    writer.finish()


def _importer(
    folder: Path, class_names: Sequence[str], image_shape: Sequence[int]
) -> PoolWriter:
    return PoolWriter(
        folder,
        class_names=class_names,
        image_shape=image_shape,
        generator={"name": "import"},
    )
