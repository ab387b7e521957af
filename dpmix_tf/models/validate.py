"""Refuses networks through which one example could reach beyond its own gradient."""

import keras
import numpy as np

from dpmix_tf.errors import DPMixError
from dpmix_tf.models.data_format import require_channels_last
from dpmix_tf.models.structure import split_frozen_front

_INSTEAD = {
    "BatchNormalization": "keras.layers.GroupNormalization",
    "MixUp": "dpmix_tf.views.dp_mix_self, which mixes inside one example",
    "CutMix": "dpmix_tf.views.dp_mix_self, which mixes inside one example",
    "FourierMix": "dpmix_tf.views.dp_mix_self, which mixes inside one example",
    "Mosaic": "dpmix_tf.views.dp_mix_self, which mixes inside one example",
}


def validate_network(network: keras.Model) -> None:
    """Checks that a network is allowed under differential privacy.

    Four ways out of an example's own clipped gradient are closed: layers known to mix
    examples; state that the forward pass writes (moving averages of activations are not
    noised); outputs of one example that change with another; and random layers such as
    Dropout, whose draws follow a seed that is not secret and a count of the private
    batches' examples. The second and third are tried on random images rather than read
    off the layers' names.

    What no trainable weight comes before runs in inference mode and may have any of
    them: a frozen BatchNormalization only applies constants.

    Args:
      network: a built Keras model, images -> logits [n,classes].

    Raises:
      DPMixError: names the layer and what to use instead.
    """
    require_channels_last()
    for layer in network._flatten_layers():
        kind = type(layer).__name__
        frozen = kind == "BatchNormalization" and not layer.trainable
        if kind in _INSTEAD and not frozen:
            raise DPMixError(
                f"Layer {layer.name!r} ({kind}) computes across the examples of a "
                "batch or keeps un-noised statistics of them, which clipping cannot "
                f"bound. Use {_INSTEAD[kind]} instead."
            )
        if getattr(layer, "stateful", False):
            raise DPMixError(
                f"Layer {layer.name!r} ({kind}) carries state from one batch to the "
                "next, which clipping cannot bound. Build it with stateful=False."
            )
    if not network.trainable_variables:
        raise DPMixError(f"{network.name!r} has no trainable variables: nothing to do.")
    shape = network.input_shape
    if not isinstance(shape, tuple) or len(shape) != 4 or None in shape[1:]:
        raise DPMixError(
            "The network must take images of one fixed size, input shape "
            f"(None, H, W, C); received: {shape}."
        )
    if len(network.output_shape) != 2:
        raise DPMixError(
            "The network must emit logits of shape (None, classes); received: "
            f"{network.output_shape}."
        )
    front, rest = split_frozen_front(network)
    for layer in rest._flatten_layers():
        if any(isinstance(v, keras.random.SeedGenerator) for v in vars(layer).values()):
            raise DPMixError(
                f"Layer {layer.name!r} ({type(layer).__name__}) draws random numbers "
                "from a seed that is not secret, and counts the examples of private "
                "batches. Remove it; the noise regularises already."
            )
    _probe(network, front, rest)
    if network.losses:
        raise DPMixError(
            f"{network.name!r} has layers with regularisers: dpmix_tf trains on the "
            "mean loss of an example's views alone and would drop them silently. Use "
            "the optimizer's weight_decay instead."
        )


def _probe(network: keras.Model, front: keras.Model | None, rest: keras.Model) -> None:
    """Runs a few random images through, as in training, and looks at what moved."""
    pair = np.random.RandomState(0).uniform(size=(2, *network.input_shape[1:]))
    other = np.stack([pair[0], 1 - pair[1]])
    state = [variable.numpy() for variable in network.variables]
    for variable in network.trainable_variables:
        # A head that starts at zero would hide what comes before it.
        noise = np.random.RandomState(1).normal(0, 0.1, variable.shape)
        variable.assign_add(noise.astype(np.float32))
    tried = [variable.numpy() for variable in network.variables]
    logits = []
    for images in (pair, other):
        features = images if front is None else front(images, training=False)
        logits.append(np.asarray(rest(features, training=True), np.float32))
    written = []
    for variable, was, before in zip(network.variables, tried, state, strict=True):
        if not np.array_equal(variable.numpy(), was):
            written.append(variable.path)
        variable.assign(before)
    if written:
        raise DPMixError(
            f"The forward pass writes to {', '.join(written)}: state computed from "
            "private images without noise. Remove the layer, or freeze it."
        )
    if not np.allclose(logits[0][0], logits[1][0], rtol=1e-4, atol=1e-5):
        raise DPMixError(
            f"The output of {network.name!r} for one image changes with another image "
            "of the batch: some layer mixes examples. Remove it; normalise each "
            "example on its own, for instance with keras.layers.GroupNormalization."
        )
