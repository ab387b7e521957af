"""Private data: sources, data sets by name and Poisson-sampled batches."""

from dpmix_tf.data.image_folder import ImageFolderSource
from dpmix_tf.data.people import PeopleSource
from dpmix_tf.data.poisson import Batch, PoissonBatches
from dpmix_tf.data.registry import (
    DATASETS,
    Dataset,
    describe_dataset,
    describe_settings,
    load_dataset,
    load_left_out,
)
from dpmix_tf.data.sources import (
    ArraySource,
    ExampleSource,
    in_order,
    ordered_batches,
)
from dpmix_tf.data.tables import Columns, TableSettings, TableSource, open_table

__all__ = [
    "DATASETS",
    "ArraySource",
    "Batch",
    "Columns",
    "Dataset",
    "ExampleSource",
    "ImageFolderSource",
    "PeopleSource",
    "PoissonBatches",
    "TableSettings",
    "TableSource",
    "describe_dataset",
    "describe_settings",
    "in_order",
    "load_dataset",
    "load_left_out",
    "open_table",
    "ordered_batches",
]
