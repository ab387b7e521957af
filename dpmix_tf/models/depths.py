"""Features of several depths of an encoder, side by side."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

from dpmix_tf.errors import DPMixError
from dpmix_tf.models.encoders import first_token


def at_depths(
    tower: keras.Model, blocks: list[list[Any]], depths: Sequence[int]
) -> tuple[keras.Model, tuple[int, ...]]:
    """Takes what several blocks of an encoder output, instead of the last one alone.

    The last features of an encoder are made for the classes that it was trained on;
    those before them tell others apart too.

    Args:
      tower: the encoder, images -> features.
      blocks: its layers after the stem, as an Encoder builds them.
      depths: how many blocks before the end each output is: 0 is the encoder's own, 1
        is what its last block takes in, and so on up to what its first block takes in.

    Returns:
      The encoder, images -> float [n,d], with the features of each depth side by side:
      maps averaged over all positions, of tokens the first; and their widths, whose sum
      is d.

    Raises:
      DPMixError: the depths are none, given twice or not there.
    """
    depths = tuple(depths)
    known = range(len(blocks) + 1)
    if not depths or len(set(depths)) < len(depths) or not set(depths) <= {*known}:
        raise DPMixError(
            "network.depths must be different numbers of blocks before the encoder's "
            f"end, from 0 to {known[-1]}; received: {depths}. Only encoders that are "
            "built by name have known blocks."
        )
    features = [
        _pooled(blocks[-depth][0].input if depth else tower.output) for depth in depths
    ]
    x = layers.Concatenate()(features) if len(features) > 1 else features[0]
    widths = tuple(feature.shape[-1] for feature in features)
    return keras.Model(tower.inputs[0], x, name=tower.name), widths


def _pooled(x):
    if len(x.shape) == 4:
        return layers.GlobalAveragePooling2D()(x)
    return first_token(x) if len(x.shape) == 3 else x
