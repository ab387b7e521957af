"""Networks by name, for configs."""

from collections.abc import Mapping
from typing import Any

import keras

from dpmix_tf.errors import DPMixError
from dpmix_tf.models.convnet import convnet
from dpmix_tf.models.wide_resnet import wide_resnet

NETWORKS = {"convnet": convnet, "wide_resnet": wide_resnet}


def build_network(
    name: str,
    *,
    input_shape: tuple[int, int, int],
    num_classes: int,
    arguments: Mapping[str, Any],
) -> keras.Model:
    """Builds the network called `name`.

    Args:
      name: a key of NETWORKS.
      input_shape: (H, W, C).
      num_classes: number of logits.
      arguments: further keyword arguments of the network's function.

    Raises:
      DPMixError: unknown name, or arguments that the network does not take.
    """
    if name not in NETWORKS:
        raise DPMixError(
            f"network must be one of {', '.join(NETWORKS)}; received: {name!r}."
        )
    try:
        return NETWORKS[name](
            input_shape=input_shape, num_classes=num_classes, **arguments
        )
    except (TypeError, ValueError) as error:
        raise DPMixError(
            f"The network {name!r} for {input_shape} images does not build with "
            f"{dict(arguments)}: {error}"
        ) from error
