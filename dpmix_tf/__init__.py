"""dpmix_tf: private image classifiers with DP-Mix, for TensorFlow and Keras.

This module holds the public names; see README.md for a first run. They are imported on
first use, so that commands that only do arithmetic need not wait for TensorFlow.
"""

import importlib
import os
import sys
from typing import TYPE_CHECKING

if sys.platform == "win32":
    raise ImportError(
        "dpmix_tf runs on Linux and macOS: it uses file locks and file modes (to keep "
        "secrets) that Windows does not have. On Windows, use it inside WSL 2."
    )
if os.environ.get("KERAS_BACKEND", "tensorflow") != "tensorflow":
    raise ImportError(
        "dpmix_tf needs Keras on TensorFlow, but KERAS_BACKEND is "
        f"{os.environ['KERAS_BACKEND']!r}. Unset it, or set it to 'tensorflow', "
        "before Python starts."
    )

if os.environ.get("TF_USE_LEGACY_KERAS", "").lower() in ("1", "true"):
    raise ImportError(
        "dpmix_tf needs Keras 3, but TF_USE_LEGACY_KERAS makes TensorFlow use Keras 2. "
        "Unset it before Python starts."
    )

if TYPE_CHECKING:
    from dpmix_tf import auditing, data, models, views
    from dpmix_tf.data import (
        ArraySource,
        ImageFolderSource,
        PeopleSource,
        PoissonBatches,
    )
    from dpmix_tf.errors import BudgetExhaustedError, DPMixError
    from dpmix_tf.privacy import Ledger, PrivacyPlan
    from dpmix_tf.synthetic import SyntheticPool
    from dpmix_tf.training import (
        DPMixModel,
        KalmanOptimizer,
        LowPassOptimizer,
        Trainer,
        default_config,
        encode_views,
    )

__version__ = "0.1.0"

_HOME = {
    "ArraySource": "data",
    "BudgetExhaustedError": "errors",
    "DPMixError": "errors",
    "DPMixModel": "training",
    "ImageFolderSource": "data",
    "KalmanOptimizer": "training",
    "Ledger": "privacy",
    "LowPassOptimizer": "training",
    "PeopleSource": "data",
    "PoissonBatches": "data",
    "PrivacyPlan": "privacy",
    "SyntheticPool": "synthetic",
    "Trainer": "training",
    "default_config": "training",
    "encode_views": "training",
}
_MODULES = ("auditing", "data", "models", "views")

__all__ = [
    "ArraySource",
    "BudgetExhaustedError",
    "DPMixError",
    "DPMixModel",
    "ImageFolderSource",
    "KalmanOptimizer",
    "Ledger",
    "LowPassOptimizer",
    "PeopleSource",
    "PoissonBatches",
    "PrivacyPlan",
    "SyntheticPool",
    "Trainer",
    "auditing",
    "data",
    "default_config",
    "encode_views",
    "models",
    "views",
]


def __getattr__(name: str):
    if name in _MODULES:
        return importlib.import_module(f"dpmix_tf.{name}")
    if name in _HOME:
        return getattr(importlib.import_module(f"dpmix_tf.{_HOME[name]}"), name)
    raise AttributeError(f"module 'dpmix_tf' has no attribute {name!r}")
