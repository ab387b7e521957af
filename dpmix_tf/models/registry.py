"""Networks by name, for configs."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import keras

from dpmix_tf.errors import DPMixError
from dpmix_tf.models.convnet import convnet
from dpmix_tf.models.pretrained import pretrained
from dpmix_tf.models.scattering_network import scattering_network
from dpmix_tf.models.vision_transformer import vision_transformer
from dpmix_tf.models.wide_resnet import wide_resnet

# float16 would need loss scaling, which is incompatible with private gradients.
DTYPE_POLICIES = ("float32", "mixed_bfloat16")
NETWORKS: Mapping[str, Callable[..., keras.Model]] = {
    "convnet": convnet,
    "pretrained": pretrained,
    "scattering": scattering_network,
    "vision_transformer": vision_transformer,
    "wide_resnet": wide_resnet,
}


def network_arguments(name: str) -> dict[str, inspect.Parameter]:
    """Returns the arguments that a config may give to the network called `name`."""
    parameters = inspect.signature(NETWORKS[name]).parameters
    given = ("input_shape", "num_classes", "name")  # from the data and the config
    return {name: p for name, p in parameters.items() if name not in given}


def build_network(
    name: str,
    *,
    input_shape: tuple[int, int, int],
    num_classes: int,
    arguments: Mapping[str, Any],
    dtype_policy: str = "float32",
) -> keras.Model:
    """Builds the network called `name`.

    Args:
      name: a key of NETWORKS.
      input_shape: (H, W, C).
      num_classes: number of logits.
      arguments: further keyword arguments of the network's function.
      dtype_policy: Keras's policy: "float32", or "mixed_bfloat16" to compute in
        bfloat16 with float32 weights, which pays off where the processor has
        instructions for it.

    Raises:
      DPMixError: an unknown name or policy, or an argument the network does not take.
    """
    if name not in NETWORKS:
        raise DPMixError(
            f"network must be one of {', '.join(NETWORKS)}; received: {name!r}."
        )
    if dtype_policy not in DTYPE_POLICIES:
        raise DPMixError(
            f"dtype_policy must be one of {', '.join(DTYPE_POLICIES)}; received: "
            f"{dtype_policy!r}."
        )
    taken = network_arguments(name)
    unknown = [argument for argument in arguments if argument not in taken]
    if unknown:
        raise DPMixError(
            f"The network {name!r} takes no argument {', '.join(unknown)}; it takes "
            f"{', '.join(taken) or 'none'}. In a config, replace the network with "
            f'config.network = {{"name": "{name}", ...}}.'
        )
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype_policy)
    try:
        return NETWORKS[name](
            input_shape=input_shape, num_classes=num_classes, **arguments
        )
    except DPMixError:
        raise
    except (TypeError, ValueError) as error:
        raise DPMixError(
            f"The network {name!r} cannot be built for {input_shape} images with "
            f"{dict(arguments)}: {error}"
        ) from error
    finally:
        keras.config.set_dtype_policy(before)
