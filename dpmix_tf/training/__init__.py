"""Private training: the model, its averages, checkpoints and whole runs."""

from dpmix_tf.training.cluster import make_strategy
from dpmix_tf.training.config import default_config, pretrained_network
from dpmix_tf.training.dp_model import DPMixModel
from dpmix_tf.training.encoding import encode_views
from dpmix_tf.training.filtering import KalmanOptimizer, LowPassOptimizer
from dpmix_tf.training.restore import restore_network
from dpmix_tf.training.trainer import Trainer

__all__ = [
    "DPMixModel",
    "KalmanOptimizer",
    "LowPassOptimizer",
    "Trainer",
    "default_config",
    "encode_views",
    "make_strategy",
    "pretrained_network",
    "restore_network",
]
