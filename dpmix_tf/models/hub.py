"""Image encoders of KerasHub: CLIP by LAION, DINOv2, SigLIP 2 and others."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import keras
import numpy as np
from keras import layers

from dpmix_tf.errors import DPMixError
from dpmix_tf.files import local_path
from dpmix_tf.models.encoders import download, first_token

PREFIX = "keras_hub:"
_PYTHON = (3, 11)  # the oldest that KerasHub 0.32 installs on


def hub_folder(encoder: str) -> Path:
    """Finds the folder of a preset, and downloads it if only its name is given.

    Args:
      encoder: "keras_hub:" before a folder that keras_hub's `save_to_preset` wrote or
        that was downloaded, whose path has a slash in it; or before a preset's name.

    Returns:
      The folder, which is not there if a path was given and nothing is.

    Raises:
      DPMixError: there is no such preset, it cannot be downloaded, or keras_hub is
        needed for that and not installed.
    """
    preset = encoder.removeprefix(PREFIX)
    folder = local_path(preset, "network.encoder")
    if "/" in preset or folder.exists():
        return folder
    presets = _keras_hub().layers.ImageConverter.presets
    if preset not in presets:
        raise DPMixError(
            f"network.encoder={encoder!r}: {preset!r} is neither a folder nor one of "
            "KerasHub's presets for images, which are listed in "
            "keras_hub.layers.ImageConverter.presets, such as dinov2_base. For a "
            f"folder, write {PREFIX}./{preset}."
        )
    downloaded = download(
        preset,
        presets[preset]["kaggle_handle"],
        instead=f"copy the preset's folder here and give its path with "
        f"--config.network.encoder={PREFIX}PATH",
    )
    return local_path(downloaded)


def hub_encoder(folder: Path, size: int | None) -> keras.Model:
    """Loads a preset's image encoder, with its own normalisation of images before it.

    Args:
      folder: of the preset.
      size: height and width of the images, pixels; None for the preset's own. Another
        than its own is possible where the backbone interpolates its positions or has
        none (DINOv2 and v3, convolutional networks).

    Returns:
      The network, float [n,size,size,3] in [0, 1] -> float features, [n,d] or, of a
      convolutional network, [n,h,w,d]: the embedding that is compared with texts (CLIP,
      SigLIP), the class token (DINOv2, ViT), or the mean of all tokens.

    Raises:
      DPMixError: keras_hub is not installed, or the folder holds no such preset.
    """
    keras_hub = _keras_hub()
    try:
        backbone = _backbone(keras_hub, folder, size)
        converter = keras_hub.layers.ImageConverter.from_preset(str(folder))
        of_pairs = hasattr(backbone, "get_vision_embeddings")  # of images and texts
        tower = backbone.vision_encoder if of_pairs else backbone
        (given,) = keras.tree.flatten(tower.input)
        images = keras.Input(given.shape[1:], name="images")
        # A converter takes values up to 255, and leaves out what it does not need.
        scale = 255.0 * np.asarray(1.0 if converter.scale is None else converter.scale)
        offset = np.asarray(0.0 if converter.offset is None else converter.offset)
        x = layers.Rescaling(scale, offset)(images)
        if of_pairs:
            x = backbone.get_vision_embeddings(x)
        else:
            x = backbone(keras.tree.pack_sequence_as(tower.input, [x]))
        if len(x.shape) == 3:
            pooling = layers.GlobalAveragePooling1D()
            x = first_token(x) if _has_class_token(keras_hub, backbone) else pooling(x)
    except Exception as error:  # whatever KerasHub or Keras raise for a bad folder
        raise DPMixError(
            f"{folder} does not hold a KerasHub preset that takes images alone, or not "
            f"at this size ({size or 'its own'}): {type(error).__name__}: "
            f"{str(error)[:300]} Expected a folder with config.json, its weights and "
            "image_converter.json, which says how images are normalised."
        ) from error
    return keras.Model(images, x, name=backbone.name)


def _backbone(keras_hub: ModuleType, folder: Path, size: int | None) -> Any:
    """Loads the backbone; `_fit` of the head refuses one of another size."""
    text = (folder / "config.json").read_text(encoding="utf-8")
    settings = {}
    if size is not None and "image_shape" in json.loads(text).get("config", {}):
        settings["image_shape"] = (size, size, 3)
    return keras_hub.models.Backbone.from_preset(str(folder), **settings)


def _has_class_token(keras_hub: ModuleType, backbone: Any) -> bool:
    """Whether the first token of the output stands for the whole image."""
    models = keras_hub.models
    having = (models.DINOV2Backbone, models.DINOV3Backbone, models.DeiTBackbone)
    if isinstance(backbone, models.ViTBackbone):
        return backbone.use_class_token
    return isinstance(backbone, having)


def _keras_hub() -> ModuleType:
    """Imports keras_hub, which is an extra and takes seconds."""
    if sys.version_info < _PYTHON:
        raise DPMixError(
            f"Encoders of KerasHub need Python {'.'.join(map(str, _PYTHON))}; this is "
            f"{sys.version.split()[0]}. Use that Python, or one of the other encoders."
        )
    try:
        import keras_hub
    except ImportError as error:
        raise DPMixError(
            "Encoders of KerasHub need the package keras_hub, which cannot be "
            f"imported: {error}. Run pip install dpmix_tf[keras_hub]."
        ) from error
    return keras_hub
