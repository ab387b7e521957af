r"""How long an update of people takes, against one of single images with as many views.

python benchmarks/people_update.py

Both train a convolutional network on 32x32 colour images held in memory, with 8 views
per record: of people, one of each of 8 images; of single images, 8 augmented copies.
Batches are drawn, read and trained on as `fit` does it. They take turns in one process.
"""

import json
import statistics

import keras
import numpy as np
from absl import app, flags, logging
from timing import spread, take_turns

from dpmix_tf import models, views
from dpmix_tf.data import ArraySource, PeopleSource
from dpmix_tf.files import write_text_atomic
from dpmix_tf.privacy import PrivacyPlan
from dpmix_tf.training import DPMixModel

_BATCH = flags.DEFINE_integer("batch", 128, "Expected records in a batch.")
_REPEATS = flags.DEFINE_integer("repeats", 9, "Turns each contestant takes.")
_JSON = flags.DEFINE_string("json", None, "File to write all figures to.")

_IMAGES = 8  # of a person, and views of a record


def model_of(records):
    """A model, to be fitted for one update at a time."""
    plan = PrivacyPlan(
        num_examples=len(records),
        record=records.record,
        expected_batch_size=_BATCH.value,
        updates=_REPEATS.value + 2,
        noise_multiplier=1.0,
        delta=1e-5,
    )
    keras.utils.set_random_seed(0)
    network = models.convnet(input_shape=(32, 32, 3), num_classes=10)
    maker = views.self_aug(base=_IMAGES, augment="crop_flip")
    model = DPMixModel(network, plan=plan, views=maker, seed=1)
    model.compile(keras.optimizers.SGD(0.1))
    return model


def main(_):
    """Prints the times, and writes them to --json."""
    logging.set_verbosity(logging.ERROR)
    random = np.random.default_rng(0)
    count = 8 * _BATCH.value * _IMAGES
    images = random.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    examples = ArraySource(images, np.arange(count) % 10)
    people = PeopleSource(examples, np.arange(count) // _IMAGES, max_images=_IMAGES)
    sources = {"images": examples, "people": people}
    fits = {name: model_of(source) for name, source in sources.items()}
    seconds = take_turns(
        {
            name: lambda name=name: fits[name].fit(
                sources[name], steps_per_epoch=1, verbose=0
            )
            for name in sources
        },
        _REPEATS.value,
    )
    ratio = statistics.median(seconds["people"]) / statistics.median(seconds["images"])
    print("| records | ms per update (range) | relative |")
    print("| --- | --- | --- |")
    print(f"| single images, {_IMAGES} views | {spread(seconds['images'])} | 1 |")
    print(f"| people of {_IMAGES} images | {spread(seconds['people'])} | {ratio:.2f} |")
    if _JSON.value:
        write_text_atomic(_JSON.value, json.dumps(seconds, indent=2))


if __name__ == "__main__":
    app.run(main)
