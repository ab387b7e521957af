"""The contract that every maker of views fulfils for private updates."""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Protocol

import tensorflow as tf

from dpmix_tf.errors import DPMixError
from dpmix_tf.synthetic import SyntheticPool
from dpmix_tf.views.augment import AUGMENTATIONS


class Records(NamedTuple):
    """The units of a batch that are clipped: one clipped gradient per record.

    Attributes:
      tensors: tensors [records,...], with one row per record.
      make_views: some rows of these -> their views, float32
        [rows,views_per_record,H,W,C] (or their features), and labels, float32
        [rows,views_per_record,classes]. The views of a record depend on it alone.
    """

    tensors: tuple[tf.Tensor, ...]
    make_views: Callable[..., tuple[tf.Tensor, tf.Tensor]]


class Views(Protocol):
    """Makes records from a batch, and views from each record.

    Formal guarantee: adding or removing one example of the batch moves a sum over
    records, each of length at most 1, by at most `sensitivity`.

    Attributes:
      kind: name of the maker's class in saved models.
      sensitivity: in clip norms, 1 or more.
      synthetic: number of images from a public pool among an example's views.
      pool: the pool they are drawn from; None if there are none.
      views_per_example: K.
      views_per_record: number of views whose mean gradient is clipped as a unit.
      shareable: whether each replica may make the records of its part of the batch.
      encoded: whether `make_views` gives what the network's frozen front makes of the
        views, instead of the views; only the batch's ids are then used.
    """

    kind: ClassVar[str]
    sensitivity: ClassVar[float]
    shareable: ClassVar[bool]
    encoded: ClassVar[bool]

    @property
    def synthetic(self) -> int: ...  # noqa: D102

    @property
    def pool(self) -> SyntheticPool | None: ...  # noqa: D102

    @property
    def views_per_example(self) -> int: ...  # noqa: D102

    @property
    def views_per_record(self) -> int: ...  # noqa: D102

    def records(
        self,
        images: tf.Tensor,
        labels: tf.Tensor,
        ids: tf.Tensor,
        *,
        seed: tf.Tensor,
        expected_batch_size: float,
    ) -> Records:
        """Returns the records: what is clipped as a unit.

        Args:
          images: [n,H,W,C], a batch.
          labels: float [n,classes].
          ids: int64 [n], which key the examples' random draws.
          seed: int64 [2], the seed of this update's views.
          expected_batch_size: the plan's expected batch size.
        """

    def to_dict(self) -> dict[str, Any]:
        """Returns the maker as JSON-able values, for `views.from_dict`."""


def check_settings(alpha: float, augment: str) -> None:
    """Refuses settings that are invalid for every view maker."""
    if not alpha > 0:
        raise DPMixError(f"alpha must be above 0, received: {alpha}.")
    if augment not in AUGMENTATIONS:
        raise DPMixError(
            f"augment must be one of {', '.join(AUGMENTATIONS)}; received: {augment!r}."
        )
