"""Networks that are allowed under differential privacy; all emit logits."""

from dpmix_tf.models.convnet import convnet
from dpmix_tf.models.data_format import require_channels_last
from dpmix_tf.models.patches import PatchBank
from dpmix_tf.models.pretrained import (
    pretrained,
    public_file,
    weights_digest,
    without_place,
)
from dpmix_tf.models.registry import NETWORKS, build_network, network_arguments
from dpmix_tf.models.scattering import Scattering
from dpmix_tf.models.scattering_network import constants_digest, scattering_network
from dpmix_tf.models.structure import (
    count_activations,
    dense_layers,
    network_digest,
    split_frozen_front,
)
from dpmix_tf.models.texts import embed_texts
from dpmix_tf.models.validate import validate_network
from dpmix_tf.models.vision_transformer import vision_transformer
from dpmix_tf.models.whitening import (
    LogMagnitude,
    MirrorAverage,
    OpponentColours,
    Whitening,
)
from dpmix_tf.models.wide_resnet import wide_resnet

require_channels_last()

__all__ = [
    "LogMagnitude",
    "MirrorAverage",
    "NETWORKS",
    "OpponentColours",
    "PatchBank",
    "Scattering",
    "Whitening",
    "build_network",
    "constants_digest",
    "convnet",
    "count_activations",
    "dense_layers",
    "embed_texts",
    "network_arguments",
    "network_digest",
    "pretrained",
    "public_file",
    "scattering_network",
    "split_frozen_front",
    "validate_network",
    "vision_transformer",
    "weights_digest",
    "wide_resnet",
    "without_place",
]
