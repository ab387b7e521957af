"""Makes optimizers and schedules from configs, and refuses those that do not fit."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import keras
from ml_collections import ConfigDict

from dpmix_tf.errors import DPMixError
from dpmix_tf.training.filtering import KalmanOptimizer, LowPassOptimizer

_Schedule = keras.optimizers.schedules.LearningRateSchedule
SCHEDULES = {
    name: schedule
    for name, schedule in vars(keras.optimizers.schedules).items()
    if isinstance(schedule, type)
    and issubclass(schedule, _Schedule)
    and schedule is not _Schedule
}


def make_optimizer(config: ConfigDict) -> keras.optimizers.Optimizer:
    """Makes the Keras optimizer that `config.optimizer` names.

    Its learning_rate is a number, a Keras schedule, or a schedule's name and arguments,
    as in {"name": "CosineDecay", "initial_learning_rate": 4.0, "decay_steps": 100}. A
    schedule counts updates, as everything does here.

    Raises:
      DPMixError: Keras has no such optimizer or schedule, or it rejects the arguments.
    """
    arguments = config.optimizer.to_dict()
    name = arguments.pop("name")
    memory, gain = arguments.pop("low_pass"), arguments.pop("kalman_gain")
    if memory is not None and gain is not None:
        raise DPMixError(
            f"Give only one of optimizer.low_pass and optimizer.kalman_gain; received "
            f"{memory} and {gain}."
        )
    arguments["learning_rate"] = _learning_rate(arguments["learning_rate"])
    try:
        inner = keras.optimizers.get({"class_name": name, "config": arguments})
    except (ValueError, TypeError) as error:
        raise DPMixError(
            f"Keras cannot make an optimizer {name!r} from {arguments}: {error}"
        ) from error
    if gain is not None:
        return KalmanOptimizer(inner, gain)
    return inner if memory is None else LowPassOptimizer(inner, memory)


def _learning_rate(value: Any) -> Any:
    """Returns the schedule that a dictionary describes; anything else unchanged."""
    if not isinstance(value, Mapping):
        return value
    described = dict(value)
    if "class_name" not in described:
        described = {"class_name": described.pop("name", None), "config": described}
    name, arguments = described["class_name"], described.get("config", {})
    schedule = None
    if name in SCHEDULES:
        try:
            schedule = SCHEDULES[name](**arguments)
        except (ValueError, TypeError) as error:
            raise DPMixError(
                f"Keras cannot make a {name} from {dict(arguments)}: {error}"
            ) from error
    else:
        with contextlib.suppress(ValueError, TypeError):  # registered with Keras
            schedule = keras.optimizers.schedules.deserialize(described)
    if not isinstance(schedule, _Schedule):
        raise DPMixError(
            "optimizer.learning_rate must be a number or a schedule, whose name is one "
            f"of {', '.join(sorted(SCHEDULES))}; received: {dict(value)}."
        )
    return schedule


def with_plain_schedule(config: ConfigDict) -> ConfigDict:
    """Returns the config with a schedule described by a dictionary, for config.json.

    Raises:
      DPMixError: the schedule cannot be described.
    """
    schedule = config.optimizer.learning_rate
    if not isinstance(schedule, _Schedule):
        return config
    described = keras.optimizers.schedules.serialize(schedule)
    try:
        json.dumps(described)
    except TypeError as error:
        raise DPMixError(
            f"The schedule {type(schedule).__name__} cannot be written to config.json: "
            f"{error}. Give it plain numbers."
        ) from error
    config = config.copy_and_resolve_references()
    config.optimizer.learning_rate = described
    return config


def check_optimizer(optimizer: keras.optimizers.Optimizer) -> None:
    """Refuses optimizers whose updates would differ from those that are counted.

    Weight decay and clipping act on noisy gradients: they are post-processing.

    Args:
      optimizer: may wrap others, which are checked too.

    Raises:
      DPMixError: it uses loss scaling, gradient accumulation, or averaged weights.
    """
    for one in _all_of(optimizer):
        if isinstance(one, keras.optimizers.LossScaleOptimizer):
            raise DPMixError(
                "A LossScaleOptimizer would divide the noisy gradients by a scale that "
                "they were never multiplied by. Pass its inner optimizer instead."
            )
        if getattr(one, "loss_scale_factor", None):
            raise DPMixError(
                f"loss_scale_factor={one.loss_scale_factor} would divide the noisy "
                "gradients by a factor they were never multiplied by. Leave it out."
            )
        if getattr(one, "gradient_accumulation_steps", None):
            raise DPMixError(
                "gradient_accumulation_steps would apply several noisy gradients as "
                "one update, so the count of updates would be wrong. Raise the plan's "
                "expected_batch_size instead: memory does not grow with it."
            )
        if getattr(one, "use_ema", False):
            raise DPMixError(
                "use_ema overwrites the weights with their average at the end of every "
                "fit, and so at every checkpoint. Leave it out: DPMixModel keeps an "
                "average of the weights itself (ema_decay)."
            )


def leave_gradients_as_they_are(optimizer: keras.optimizers.Optimizer) -> None:
    """Keeps a Keras optimizer from adding up the replicas' gradients.

    They are already equal, noise included. Adding up gradients before the noise is not
    an alternative: the optimizer's own clipping, if any, would then precede the noise.

    Args:
      optimizer: may wrap others, which are changed too.

    Raises:
      DPMixError: this version of Keras adds up gradients in an unknown way.
    """
    for one in _all_of(optimizer):
        if not hasattr(one, "_all_reduce_sum_gradients"):
            raise DPMixError(
                f"Keras {keras.__version__} adds gradients up over replicas in a way "
                "that dpmix_tf does not know, so the noise would be wrong. Use one "
                "replica, or a Keras version that requirements.txt allows."
            )
        one._all_reduce_sum_gradients = lambda gradients: gradients


def _all_of(optimizer: Any, seen: frozenset = frozenset()) -> Iterator[Any]:
    """Yields an optimizer and all those it holds, however deeply nested."""
    yield optimizer
    seen |= {id(optimizer)}
    for value in keras.tree.flatten(list(vars(optimizer).values())):
        if isinstance(value, keras.optimizers.Optimizer) and id(value) not in seen:
            yield from _all_of(value, seen)


_NOT_TAKEN = {
    "loss": "the loss is the soft-label cross-entropy of the views",
    "loss_weights": "there is one loss",
    "weighted_metrics": "examples carry no weights",
}


def check_compile(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the remaining arguments of Keras's compile that are allowed.

    Raises:
      DPMixError: an argument would change what an update is.
    """
    arguments = dict(arguments)
    for name, why in _NOT_TAKEN.items():
        if arguments.pop(name, None) is not None:
            raise DPMixError(f"compile takes no {name}: {why}.")
    steps = arguments.pop("steps_per_execution", None)
    if steps not in (None, 1):
        raise DPMixError(
            f"steps_per_execution={steps!r}: dpmix_tf makes one update per call, and "
            "the other requested updates would be skipped. Remove it."
        )
    return arguments
