"""Restores a model, or its network alone, from a checkpoint."""

from pathlib import Path
from typing import Any

import keras
import numpy as np

from dpmix_tf.data import Dataset, load_dataset
from dpmix_tf.errors import DPMixError
from dpmix_tf.files import local_path
from dpmix_tf.models import build_network, public_file
from dpmix_tf.privacy import PrivacyPlan
from dpmix_tf.training.checkpoints import load_latest
from dpmix_tf.training.dp_model import DPMixModel
from dpmix_tf.training.saving import kept_variables
from dpmix_tf.training.workdir import (
    WorkDir,
    differences,
    read_json,
    spent_updates,
)


def load_to_resume(
    workdir: WorkDir, fingerprint: str
) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """Loads a run's latest checkpoint if training may resume from it.

    Args:
      workdir: of the run.
      fingerprint: of the training data as it is now.

    Returns:
      (arrays, metadata); None for a new run.

    Raises:
      DPMixError: the data has changed, or updates were made and their checkpoints are
        gone.
    """
    saved = load_latest(workdir.checkpoints)
    spent = spent_updates(workdir.path)
    if saved is None and spent:
        raise DPMixError(
            f"{workdir.path} has spent {spent} updates (privacy.json), but its "
            "checkpoints are gone: starting again there would spend them twice and "
            "report them once. Use another --workdir, and count both."
        )
    if saved is not None and saved[1]["data_fingerprint"] != fingerprint:
        raise DPMixError(
            f"The training data has changed since the run in {workdir.path} began. A "
            "resumed run repeats its noise, which is safe only on the same examples: "
            "restore them, or use another --workdir."
        )
    return saved


def restore_model(
    model: DPMixModel, arrays: dict[str, np.ndarray], metadata: dict[str, Any]
) -> None:
    """Puts a checkpoint's weights, optimizer state and averages into a model.

    Args:
      model: built and compiled as it was when the checkpoint was written.
      arrays: from load_latest.
      metadata: from load_latest.

    Raises:
      DPMixError: the plan, pool or network is another one.
    """
    pool = model.views.pool
    if metadata["pool_digest"] != (pool.digest if pool else None):
        raise DPMixError(
            "The pool of synthetic images has changed since the checkpoint was made. "
            "Put the old one back, or use another --workdir."
        )
    plan = PrivacyPlan(**metadata["plan"])
    if plan != model.plan:
        raise DPMixError(
            "The checkpoint was made under another plan:\n"
            + "\n".join(
                f"  {line}"
                for line in differences(plan.to_dict(), model.plan.to_dict())
            )
            + "\nUse another --workdir; mixing plans would make epsilon wrong."
        )
    for group, variables in model.state().items():
        _assign(group, variables, arrays)


def restore_network(
    workdir: str | Path, *, weights: str = "ema"
) -> tuple[keras.Model, dict[str, Any]]:
    """Loads the network of a run's newest checkpoint, without any training data.

    Args:
      workdir: of a run.
      weights: "ema" for the averaged weights, "raw" for the last update's.

    Returns:
      The network, float images in [0, 1] -> logits; and the checkpoint's metadata
      (class_names, image_shape, updates, plan) without its secret seed. The network
      computes in float32 even if training computed in bfloat16, so that its answers
      agree, up to rounding, on any device and in any format.

    Raises:
      DPMixError: there is no run or no intact checkpoint.
    """
    if weights not in ("ema", "raw"):
        raise DPMixError(f"weights must be 'ema' or 'raw', received: {weights!r}.")
    workdir = local_path(workdir, "The workdir")
    saved = load_latest(workdir / "checkpoints")
    if saved is None:
        raise DPMixError(
            f"{workdir} holds no checkpoint. Expected the --workdir of a training run."
        )
    arrays, metadata = saved
    config = read_json(workdir / "config.json")
    arguments = dict(config["network"])
    name = arguments.pop("name")
    file = public_file(**arguments) if name == "pretrained" else None
    if file is not None and not file.exists():
        raise DPMixError(
            f"{workdir} was trained on the public weights in {file}, which is gone. "
            "Put them back there, or put a link there. If they have moved for good, "
            "repeat the training command with their new path: it checks their SHA-256 "
            "and records the path, even if training has finished."
        )
    if arguments.get("normalise", "none") != "none":
        arguments["normalise"] = "saved"
    network = build_network(
        name,
        input_shape=tuple(metadata["image_shape"]),
        num_classes=len(metadata["class_names"]),
        arguments=arguments,
        dtype_policy="float32",
    )
    _assign("network", kept_variables(network), arrays)
    if weights == "ema":
        _assign("average", network.trainable_variables, arrays)
    del metadata["seed"]
    return network, metadata


def restore_data(
    workdir: str | Path, metadata: dict[str, Any], *, data_dir: str | None = None
) -> Dataset:
    """Loads the data that a run was trained on, split as it was then.

    Args:
      workdir: of the run.
      metadata: from restore_network.
      data_dir: where the data is now; by default where it was during training.

    Raises:
      DPMixError: the data is missing, or has other classes or training examples.
    """
    workdir = local_path(workdir, "The workdir")
    settings = read_json(workdir / "config.json")["data"]
    dataset = load_dataset(**settings | {"data_dir": data_dir or settings["data_dir"]})
    if list(dataset.class_names) != metadata["class_names"]:
        raise DPMixError(
            f"The model's classes are {metadata['class_names']}, but the data's are "
            f"{list(dataset.class_names)}."
        )
    if dataset.train.fingerprint() != metadata["data_fingerprint"]:
        raise DPMixError(
            "The training data is not what the model was trained on: examples were "
            "changed, added or removed, or the run was made by an earlier version, "
            "which split the data differently. The model might have been trained on "
            "test examples. Restore the data as it was."
        )
    return dataset


def _assign(group: str, variables, arrays: dict[str, np.ndarray]) -> None:
    for index, variable in enumerate(variables):
        name = f"{group}/{index}"
        if name not in arrays or arrays[name].shape != tuple(variable.shape):
            raise DPMixError(
                f"The checkpoint does not fit this network: {name} should have shape "
                f"{tuple(variable.shape)}. It was written by another version or config."
            )
        variable.assign(arrays[name])
