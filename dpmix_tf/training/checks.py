"""Checks what a model and its `fit` are asked to do before anything is spent."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
from ml_collections import ConfigDict

from dpmix_tf.data import ExampleSource
from dpmix_tf.errors import BudgetExhaustedError, DPMixError
from dpmix_tf.privacy import PrivacyPlan
from dpmix_tf.privacy.plan import PERSON
from dpmix_tf.tasks import MULTI_LABEL, TASKS
from dpmix_tf.views import ViewMaker, Views


def check_fit_arguments(y: Any, settings: Mapping[str, Any], *, workers: int) -> None:
    """Refuses arguments of Keras's fit under which the guarantee would not hold.

    Args:
      y: labels; must be None.
      settings: fit's other keyword arguments.
      workers: number of processes that train together.

    Raises:
      DPMixError: the message says which argument, why, and what to do.
    """
    for argument in ("validation_split", "class_weight", "sample_weight"):
        if settings.get(argument) is not None:
            raise DPMixError(
                f"fit takes no {argument}: after the plan was made, it would change "
                "which examples are trained on, or how much each one counts. Split "
                "off a validation set before making the plan."
            )
    if y is not None:
        raise DPMixError("fit takes PoissonBatches(source, plan), not x and y.")
    if workers > 1 and settings.get("validation_data") is not None:
        raise DPMixError(
            "validation_data is not supported with several workers: call evaluate "
            "on the network after fit."
        )
    callbacks = settings.get("callbacks") or []
    callbacks = getattr(callbacks, "callbacks", callbacks)
    for callback in callbacks if isinstance(callbacks, (list, tuple)) else [callbacks]:
        _refuse_private_monitor(callback)


def _refuse_private_monitor(callback: Any) -> None:
    """Refuses a callback whose decisions depend on numbers computed without noise."""
    monitor = getattr(callback, "monitor", None)
    if isinstance(monitor, str) and monitor.startswith("private_"):
        raise DPMixError(
            f"{type(callback).__name__} monitors {monitor!r}, which is computed "
            "from the training examples without noise: what it decides would not "
            "be covered by the guarantee. Monitor a validation metric instead, "
            "such as 'val_accuracy'."
        )


def check_budget(plan: PrivacyPlan, spent: int, asked: int) -> None:
    """Raises BudgetExhaustedError if more updates are requested than are left."""
    left = plan.updates - spent
    if left <= 0 or asked > left:
        raise BudgetExhaustedError(
            f"The plan allows {plan.updates} updates, {spent} are "
            f"spent, and this call asks for {asked if asked > 0 else 'more'}. "
            "Training stops here to keep the guarantee; for more updates make a "
            "new plan and train from the start."
        )


def check_task(task: str, views: Views) -> None:
    """Raises DPMixError for an unknown task, or views that do not suit it."""
    if task not in TASKS:
        raise DPMixError(f"task must be one of {TASKS}, received: {task!r}.")
    if task == MULTI_LABEL and views.synthetic:
        raise DPMixError(
            f"synthetic={views.synthetic} views have one class each, and nothing says "
            "which other labels their images have. For several labels per image use "
            "views without synthetic ones, such as views.dp_mix_self()."
        )
    if task == MULTI_LABEL and not (views.encoded or isinstance(views, ViewMaker)):
        raise DPMixError(
            f"{views.kind} takes one class per image. For several labels use a "
            "ViewMaker, such as views.dp_mix_self()."
        )


def check_class_weights(
    weights: Sequence[float] | None, task: str, network: keras.Model
) -> list[float] | None:
    """Returns class weights as numbers.

    Raises:
      DPMixError: there is not one in [0, 1] for each class, or all are 0; or the task
        is of several labels.
    """
    if weights is None:
        return None
    if task == MULTI_LABEL:
        raise DPMixError(
            "class_weights are for one label per image: a clipped gradient has one "
            "length, and these images have several labels. Leave them out."
        )
    classes, values = int(network.output_shape[-1]), [float(one) for one in weights]
    if len(values) != classes or not all(0 <= one <= 1 for one in values):
        raise DPMixError(
            f"class_weights must be {classes} numbers in [0, 1], one per class: they "
            f"shorten clipped gradients and never lengthen them; received: {values}. "
            "Divide them by the largest."
        )
    if not any(values):
        raise DPMixError("All class_weights are 0: nothing could be learned.")
    return values


def check_views(views: Views, plan: PrivacyPlan, *, replicas: int) -> None:
    """Raises DPMixError for views to which the plan's noise does not apply."""
    if plan.sensitivity != views.sensitivity:
        raise DPMixError(
            f"The plan's noise is for a sensitivity of {plan.sensitivity:g} clip "
            f"norms; with these views it is {views.sensitivity:g}. Make the plan "
            "with sensitivity=views.sensitivity."
        )
    if plan.record == PERSON and not views.encoded and not isinstance(views, ViewMaker):
        raise DPMixError(
            f"{views.kind} blends different records and knows only single images. For "
            "people use a ViewMaker, such as views.dp_mix_self()."
        )
    if replicas > 1 and not views.shareable:
        raise DPMixError(
            f"{views.kind} cannot split its records among replicas. Use one replica."
        )


def check_source(
    source: ExampleSource,
    views: Views,
    task: str,
    image_shape: tuple[int, ...],
    classes: int,
) -> None:
    """Raises DPMixError for examples that network, views or task are not made for."""
    if source.task != task:
        raise DPMixError(
            f"The model's task is {task!r} and the source's labels are for "
            f"{source.task!r}. Make the model with task=source.task."
        )
    if source.slots and isinstance(views, ViewMaker) and views.visits is not None:
        raise DPMixError(
            "Fixed views of people (views.visits) must be encoded before training, for "
            "each is of other images: this needs a network with a frozen front, and a "
            "cache (dpmix_tf.encode_views). Or leave visits out, for new views at "
            "every update."
        )
    if tuple(source.image_shape) != image_shape:
        raise DPMixError(
            f"The network takes images of shape {image_shape}; the source's are "
            f"{source.image_shape}."
        )
    named = len(source.class_names)
    if named != classes if task == MULTI_LABEL else named > classes:
        raise DPMixError(
            f"The network has {classes} outputs; the source has {named} classes."
        )


def check_intervals(run: ConfigDict) -> None:
    """Raises DPMixError unless a config's `run` says how often to do what."""
    for name in (
        "evaluate_every",
        "checkpoint_every",
        "keep_checkpoints",
        "evaluation_batch_size",
    ):
        if run[name] < 1:
            raise DPMixError(f"run.{name} must be 1 or more, received: {run[name]}.")
