"""EncodedViews: what a frozen encoder makes of all views, made once and kept on disk.

Views need no secret: any fixed choice of an example's views keeps its sensitivity. With
`visits` = R, an example has R sets of K views, whose draws are keyed by (views.seed,
example, visit); the secret seed only chooses which of the R an update uses. So their
features can be made before training, which then gathers them by (example, visit)
instead of making and encoding views at every update. Training means the same with and
without it: the features differ by the rounding of their storage alone.
"""

import dataclasses
from typing import Any, ClassVar

import tensorflow as tf

from dpmix_tf.errors import DPMixError
from dpmix_tf.synthetic import SyntheticPool
from dpmix_tf.views.base import Records
from dpmix_tf.views.maker import ViewMaker
from dpmix_tf.views.store import FeatureStore


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodedViews:
    """A view maker with fixed visits, whose views' features are in a store.

    Attributes:
      maker: the view maker, with `visits` set.
      store: a complete store of the features, see training.encode_views.
      source: the examples that it was made from.
    """

    maker: ViewMaker
    store: FeatureStore
    source: Any

    sensitivity: ClassVar[float] = ViewMaker.sensitivity
    shareable: ClassVar[bool] = True
    encoded: ClassVar[bool] = True
    kind: ClassVar[str] = ViewMaker.kind

    @property
    def synthetic(self) -> int:
        """Number of images from a public pool among an example's views."""
        return self.maker.synthetic

    @property
    def pool(self) -> SyntheticPool | None:
        """The pool they are drawn from."""
        return self.maker.pool

    @property
    def views_per_example(self) -> int:
        """K."""
        return self.maker.views_per_example

    views_per_record = views_per_example

    def to_dict(self) -> dict[str, Any]:
        """The maker's attributes: a saved model makes its views anew."""
        return self.maker.to_dict()

    def refuse_other_examples(self, source: Any) -> None:
        """Raises DPMixError unless the store was made from this source's examples."""
        same = source is self.source
        if not same and source.fingerprint() != self.source.fingerprint():
            raise DPMixError(
                "The encoded views were made from other examples than the ones to "
                "train on. Encode the views of this source."
            )

    def records(
        self,
        images: tf.Tensor,
        labels: tf.Tensor,
        ids: tf.Tensor,
        *,
        seed: tf.Tensor,
        expected_batch_size: float,
    ) -> Records:
        """Returns the examples as records whose "views" are features, see views.base.

        Images and labels are not used: the store has both.
        """
        del images, expected_batch_size
        layout, classes = self.store.layout, labels.shape[-1]

        def make_views(ids):
            visits = self.maker.choose_visits(seed, ids)
            row = layout.row_type
            parts = tf.numpy_function(
                self.store.read,
                [ids, visits],
                [
                    tf.as_dtype(row[name].base.newbyteorder("="))
                    for name in layout.parts
                ],
            )
            shapes = [row[name].shape[1:] for name in layout.parts]
            features, *labels = (
                tf.ensure_shape(part, [ids.shape[0], *shape])
                for part, shape in zip(parts, shapes, strict=True)
            )
            if layout.several:
                return tf.cast(features, tf.float32), labels[0]
            pair, weights = labels
            soft = tf.one_hot(pair, classes) * weights[..., tf.newaxis]
            return tf.cast(features, tf.float32), tf.reduce_sum(soft, axis=2)

        return Records((ids,), make_views)


def to_pairs(labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Writes labels that blend at most two classes as these classes and their weights.

    Args:
      labels: float32 [...,classes].

    Returns:
      classes, int32 [...,2]; weights, float32 [...,2].

    Raises:
      tf.errors.InvalidArgumentError: a label has more classes.
    """
    if labels.shape[-1] == 1:
        labels = tf.concat([labels, tf.zeros_like(labels)], axis=-1)
    weights, classes = tf.math.top_k(labels, 2)
    both = tf.math.count_nonzero(weights, axis=-1)
    whole = tf.reduce_all(both == tf.math.count_nonzero(labels, axis=-1))
    check = tf.debugging.Assert(whole, ["A view's label has more than two classes."])
    with tf.control_dependencies([check] if check is not None else []):
        return tf.identity(classes), tf.identity(weights)
