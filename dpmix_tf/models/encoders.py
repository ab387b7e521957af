"""Published image encoders, built block by block with their published weights."""

import contextlib
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import keras
import keras_cv
import numpy as np
from keras import layers
from keras_cv.models.feature_extractor import CLIPImageEncoder

from dpmix_tf.errors import DPMixError
from dpmix_tf.models.efficientnet_lite import (
    VARIANTS,
    efficientnet_lite,
    packaged_weights,
)
from dpmix_tf.weights import load_weights

# CLIP's normalisation of images (Radford et al. 2021), for values in [0, 1].
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def _clip(sizes: dict[str, int], preset: str):
    """The image tower of KerasCV's CLIP."""

    def build(size, weights):
        tower = CLIPImageEncoder(input_resolution=size, **sizes)
        tower.build((None, size, size, 3))
        if weights == "preset":
            weights = download_weights(preset)
        if weights is not None:
            _load_tower(tower, weights)
        # Layer by layer, so that each block can be trained or frozen, and saved.
        images = keras.Input((size, size, 3))
        std = np.asarray(_CLIP_STD)
        x = layers.Rescaling(1 / std, -np.asarray(_CLIP_MEAN) / std)(images)
        x = tower.pre_norm(tower.embeddings(x))
        for block in tower.encoder.resblocks:
            x = block(x)
        x = first_token(x)
        x = tower.image_projector(tower.post_norm(x))
        *blocks, last = ([block] for block in tower.encoder.resblocks)
        last += [tower.post_norm, tower.image_projector]
        return keras.Model(images, x, name=tower.name), [*blocks, last]

    return build


def first_token(x):
    """The first of the tokens, [n,tokens,d] -> [n,d], of a Keras tensor."""
    return layers.Lambda(_first_token, output_shape=_first_token_shape)(x)


@keras.saving.register_keras_serializable(package="dpmix_tf")
def _first_token(x):
    return x[:, 0]


@keras.saving.register_keras_serializable(package="dpmix_tf")
def _first_token_shape(shape):
    return (shape[0], shape[2])


def download_weights(preset: str) -> str:
    """Returns the path of a KerasCV preset's weights.

    Raises:
      DPMixError: they cannot be downloaded.
    """
    return download(
        preset,
        keras_cv.models.CLIP.presets[preset]["kaggle_handle"],
        "model.weights.h5",
        instead="give the file with --config.network.weights=PATH",
    )


def download(preset: str, handle: str, file: str | None = None, *, instead: str) -> str:
    """Downloads a preset, or one file of it, unless it has been downloaded before.

    Args:
      preset: its name.
      handle: where it is, as KerasCV and KerasHub write it.
      file: the file's name; None for the whole folder.
      instead: what to do without network access.

    Returns:
      The path.

    Raises:
      DPMixError: it cannot be downloaded.
    """
    import kagglehub  # KerasCV itself downloads presets with it; slow to import

    try:
        return kagglehub.model_download(handle.removeprefix("kaggle://"), file)
    except Exception as error:  # any network error
        raise DPMixError(
            f"The weights of {preset!r} cannot be downloaded "
            f"({type(error).__name__}: {str(error)[:200]}). Without network access, "
            f"{instead}."
        ) from error


class ClipWeights(keras.Model):
    """Holds one tower where KerasCV's CLIP does, to load a weights file of both."""

    def __init__(self, **tower):
        super().__init__(name="clip")
        for name, network in tower.items():
            setattr(self, name, network)
        self.built = True


def _load_tower(tower: CLIPImageEncoder, path: str) -> None:
    """Loads a weights file of KerasCV's CLIP, or of its image tower alone."""
    whole = False
    with contextlib.suppress(OSError), h5py.File(path) as file:
        whole = "image_encoder" in file
    load_weights(ClipWeights(image_encoder=tower) if whole else tower, path)


def _convnext(application: Callable[..., keras.Model]):
    """An encoder of keras.applications, which normalises its own input."""

    def build(size, weights):
        images = keras.Input((size, size, 3))
        try:
            network = application(
                include_top=False,
                weights="imagenet" if weights == "preset" else weights,
                input_tensor=layers.Rescaling(255.0)(images),
                pooling="avg",
            )
        except Exception as error:  # from the network, H5 or Keras
            raise DPMixError(
                f"{application.__name__} cannot be given the weights {weights!r} "
                f"({type(error).__name__}: {str(error)[:200]}). Without network "
                "access, give the file with --config.network.weights=PATH."
            ) from error
        blocks: dict[str, list[Any]] = {}
        for layer in network.layers:  # "convnext_base_stage_0_block_0_..."
            if "_block_" in layer.name:
                name = "_".join(layer.name.split("_")[:6])
            elif not blocks:
                continue  # the stem
            blocks.setdefault(name, []).append(layer)
        return network, list(blocks.values())

    return build


class Encoder(NamedTuple):
    """A published encoder.

    Attributes:
      size: height and width of its images, pixels.
      build: (size; weights: a path, "preset" or None for random ones) -> network,
        images in [0, 1] -> features; and its layers after the stem, in blocks.
      packaged: finds the file of the preset, where a Python package brings it.
    """

    size: int
    build: Callable[[int, str | None], tuple[keras.Model, list[list[Any]]]]
    packaged: Callable[[], Path] | None = None


_VIT_B = {"width": 768, "num_layers": 12, "heads": 12, "output_dim": 512}
ENCODERS = {
    "clip_vit_b16": Encoder(
        224, _clip(_VIT_B | {"patch_size": 16}, "clip-vit-base-patch16")
    ),
    "clip_vit_b32": Encoder(
        224, _clip(_VIT_B | {"patch_size": 32}, "clip-vit-base-patch32")
    ),
    "convnext_base": Encoder(256, _convnext(keras.applications.ConvNeXtBase)),
    "convnext_tiny": Encoder(224, _convnext(keras.applications.ConvNeXtTiny)),
    **{
        name: Encoder(
            variant.size,
            functools.partial(efficientnet_lite, name),
            functools.partial(packaged_weights, name),
        )
        for name, variant in VARIANTS.items()
    },
}
