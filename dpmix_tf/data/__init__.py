"""Private data: sources, data sets by name and Poisson-sampled batches."""

from dpmix_tf.data.image_folder import ImageFolderSource
from dpmix_tf.data.people import PeopleSource
from dpmix_tf.data.poisson import Batch, PoissonBatches
from dpmix_tf.data.registry import (
    DATASETS,
    Dataset,
    describe_dataset,
    load_dataset,
    load_left_out,
)
from dpmix_tf.data.sources import (
    ArraySource,
    ExampleSource,
    in_order,
    ordered_batches,
)

__all__ = [
    "DATASETS",
    "ArraySource",
    "Batch",
    "Dataset",
    "ExampleSource",
    "ImageFolderSource",
    "PeopleSource",
    "PoissonBatches",
    "describe_dataset",
    "in_order",
    "load_dataset",
    "load_left_out",
    "ordered_batches",
]
