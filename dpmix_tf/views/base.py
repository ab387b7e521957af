"""What any maker of views is: the contract between views and private updates."""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Protocol

import tensorflow as tf

from dpmix_tf.synthetic import SyntheticPool


class Records(NamedTuple):
    """What a batch is clipped by: one clipped gradient per record.

    Attributes:
      tensors: what there is one of for each record, tensors [records,...].
      make_views: some rows of these -> their views, float32
        [rows,views_per_record,H,W,C], and labels, float32
        [rows,views_per_record,classes]. Each record's are made of it alone.
    """

    tensors: tuple[tf.Tensor, ...]
    make_views: Callable[..., tuple[tf.Tensor, tf.Tensor]]


class Views(Protocol):
    """Makes records of a batch, and views of each record.

    Formal guarantee: adding or removing one example of the batch moves a sum over
    records, each of length at most 1, by at most `sensitivity`.

    Attributes:
      kind: name of the maker's class in saved models.
      sensitivity: in clip norms, 1 or more.
      synthetic: images of a public pool among an example's views.
      pool: where they are drawn from; None where there are none.
      views_per_example: K.
      views_per_record: views whose mean gradient is clipped as one.
      shareable: whether replicas may each make the records of a part of the batch.
    """

    kind: ClassVar[str]
    sensitivity: ClassVar[float]
    shareable: ClassVar[bool]

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
        """Says what is clipped as one.

        Args:
          images: [n,H,W,C], a batch.
          labels: float [n,classes].
          ids: int64 [n], what the examples' draws are keyed by.
          seed: int64 [2], of this update's views.
          expected_batch_size: the plan's.
        """

    def to_dict(self) -> dict[str, Any]:
        """The maker as JSON-able values, for `views.from_dict`."""
