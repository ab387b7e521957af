"""What a saved DPMixModel holds: everything but the secret seed."""

import itertools
import json
from typing import Any

import keras
import numpy as np

from dpmix_tf import views
from dpmix_tf.errors import DPMixError
from dpmix_tf.models.components import PrincipalComponents
from dpmix_tf.privacy import Ledger, PrivacyPlan

_LEDGER = "ledger"  # where weights files keep it


class Saving(keras.Model):
    """The part of DPMixModel that Keras calls to save and to reload it."""

    def get_config(self) -> dict[str, Any]:
        """Returns what `from_config` needs to make an equal model, except the seed."""
        return {
            "name": self.name,
            "network": keras.saving.serialize_keras_object(self.network),
            # Some layers that contain layers do not save it.
            "trainable": [bool(v.trainable) for v in self.network.variables],
            "public_weights": getattr(self.network, "public_weights", False),
            "plan": self.plan.to_dict(),
            "views": self.views.to_dict(),
            "chunk_size": self.chunk_size,
            "ema_decay": self.average.decay,
            "private_metrics": self.private_metrics,
            "task": self.task,
            "class_weights": self.class_weights,
            "ledger": self.ledger.to_list(),  # a copy may be given these weights
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects=None):
        """Makes the model that `get_config` described, with a fresh seed.

        Raises:
          DPMixError: the pool of synthetic images is gone or has changed.
        """
        config = dict(config)
        config["network"] = keras.saving.deserialize_keras_object(
            config["network"], custom_objects=custom_objects
        )
        config["network"].public_weights = config.pop("public_weights")
        trainable = config.pop("trainable")
        for variable, value in zip(config["network"].variables, trainable, strict=True):
            variable.trainable = value
        config["plan"] = PrivacyPlan(**config["plan"])
        config["views"] = views.from_dict(config["views"])
        history = Ledger.from_list(config.pop("ledger"), "The model's config")
        model = cls(**config)
        model.account.absorb(history)
        return model

    def save(self, filepath, *arguments, **settings) -> None:
        """Saves a `.keras` file, as Keras does."""
        if not str(filepath).endswith(".keras"):
            raise DPMixError(f"save takes a .keras file, received: {filepath}.")
        super().save(filepath, *arguments, **settings)

    def load_weights(self, filepath, **settings) -> None:
        """Loads all weights of a `.weights.h5` or `.keras` file, or none of them.

        The file's ledger is joined with the model's, which then covers both.

        Raises:
          DPMixError: it is another kind of file, or skip_mismatch is given: the ledger
            could be left behind.
        """
        if settings or not str(filepath).endswith((".weights.h5", ".keras")):
            raise DPMixError(
                "load_weights takes a whole .weights.h5 or .keras file, so that "
                f"what was spent is loaded with it; received: {filepath} "
                f"{settings or ''}. To start from public weights, load them into "
                "model.network."
            )
        variables = [*self.variables]
        if getattr(self, "optimizer", None) is not None:  # compiled
            variables += self.optimizer.variables
        before = [np.asarray(variable) for variable in variables]
        try:
            super().load_weights(filepath)
        except Exception:
            for variable, value in zip(variables, before, strict=True):
                variable.assign(value)
            raise

    def save_own_variables(self, store) -> None:
        """Saves the averages and the ledger of the weights."""
        super().save_own_variables(store)
        text = json.dumps(self.ledger.to_list())
        store[_LEDGER] = np.frombuffer(text.encode(), np.uint8)

    def load_own_variables(self, store) -> None:
        """Loads the averages and the ledger.

        Raises:
          DPMixError: the file has no ledger of its weights.
        """
        names = set(store.keys())  # of an H5 file too, which is not a dict
        if _LEDGER not in names:
            raise DPMixError(
                "These weights do not say what they were trained under: they were "
                "not saved by a DPMixModel of this version. Public weights can be "
                "loaded into model.network."
            )
        text = np.asarray(store[_LEDGER], np.uint8).tobytes()
        history = Ledger.from_list(json.loads(text), "The weights file")
        super().load_own_variables({name: store[name] for name in names - {_LEDGER}})
        self.account.absorb(history)

    def get_compile_config(self) -> dict[str, Any]:
        """Returns the arguments of `compile`, for Keras to save."""
        config = super().get_compile_config()
        if not config:
            return config
        ours = {name: config[name] for name in ("optimizer", "metrics", "run_eagerly")}
        return ours | {"jit_compile": self.step.jit_compile}

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles a loaded model as the saved one was."""
        self.compile(**keras.saving.deserialize_keras_object(config))

    def state(self) -> dict[str, list[Any]]:
        """Returns the variables that a checkpoint must hold, by group."""
        return {
            "network": kept_variables(self.network),
            "optimizer": list(self.optimizer.variables),
            "average": list(self.average.averages),
        }


def kept_variables(network: keras.Model) -> list[Any]:
    """Returns the variables of a network that a checkpoint must hold.

    For a network on public weights these are only the trained ones, and what was
    measured on other public images: the rest is rebuilt from the file, whose digest is
    on record.
    """
    if getattr(network, "public_weights", False):
        measured = (
            layer.variables
            for layer in network._flatten_layers()
            if isinstance(layer, PrincipalComponents)
        )
        return [*network.trainable_variables, *itertools.chain(*measured)]
    return list(network.variables)
