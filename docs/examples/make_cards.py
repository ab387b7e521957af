"""Trains three small models and writes the privacy cards of docs/examples.

make cards

Two are of scikit-learn's digits. The second deals them out to people, and takes those
on whom it is tested as private too. The third is of 10,000 photographs of CIFAR-10,
which TFDS downloads unless it is prepared (TFDS_DATA_DIR). Runs are kept in runs/cards:
the same command resumes, and writes the cards again. Names after the script's, such as
photos, choose among them.
"""

import csv
import shutil
import sys
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from configs import cifar10_scattering, digits
from dpmix_tf.data import load_dataset
from dpmix_tf.files import write_text_atomic
from dpmix_tf.images import to_png
from dpmix_tf.serving.export import export_saved_model
from dpmix_tf.serving.privacy_card import HTML_FILE, JSON_FILE, MARKDOWN_FILE, read_card
from dpmix_tf.serving.registry import to_yaml
from dpmix_tf.training import Trainer

HERE, RUNS = Path(__file__).parent, Path("runs") / "cards"
REGISTRY_FILE = "registry.yaml"
CARD = {
    "curator": "The dpmix_tf maintainers",
    "curator_type": "Nonprofit",
    "region": "Public data; no region's law asks for this",
    "intended_use": "To show what a privacy card says. Not to read digits with.",
    "access": "Only this card is published, not the model.",
}


def digits_config() -> ConfigDict:
    """Single images as records: configs/digits.py with fewer views."""
    config = digits.get_config()
    config.views.update(base=4, mixed=4)
    config.card.update(CARD)
    config.card.purpose = "An example of a card where one image is protected."
    config.card.justification = (
        "Of the epsilons for which docs/guarantee.md says what an attack may find, the "
        "largest: a single image of a digit says little about whoever wrote it."
    )
    return config


def people_config(folder: Path) -> ConfigDict:
    """People as records, of a table, with noised class counts and test accuracy."""
    _write_people(folder)
    config = digits.get_config()
    config.data.update(name="table", table=str(folder / "digits.csv"), person="person")
    config.data.update(max_images_per_person=8, image_size=8, channels=1)
    config.network = ConfigDict({"name": "scattering", "head": "linear"})
    config.views.update(base=8, mixed=0, augment="none", visits=2)
    config.privacy.update(
        delta=1e-3, expected_batch_size=50, updates=60, clipping="automatic"
    )
    config.privacy.class_counts_noise = 10.0
    config.report.noise = 3.0
    config.card.update(CARD)
    config.card.purpose = "An example of a card where a person is protected."
    return config


def photos_config() -> ConfigDict:
    """A head on features that need no public data, of a part of CIFAR-10."""
    config = cifar10_scattering.get_config()
    config.data.train_examples = 10_000
    config.network.features = "scattering"
    config.privacy.update(expected_batch_size=2048, updates=60, epsilon=3.0)
    config.optimizer.learning_rate = 1.0
    config.run.evaluate_every = 60
    config.card.update(CARD)
    config.card.intended_use = "To show what a privacy card says."
    config.card.purpose = "An example of a card of a model without public data."
    return config


def _write_people(folder: Path) -> None:
    """Deals the digits out to people of 1 to 20 images, by a fixed seed."""
    folder.mkdir(parents=True, exist_ok=True)
    random, person, left, rows = np.random.default_rng(0), -1, 0, []
    whole = load_dataset("digits", validation_fraction=0.0)
    for part, source in (("train", whole.train), ("test", whole.test)):
        images, labels = source.arrays()
        for number in random.permutation(len(source)):
            if not left:
                person, left = person + 1, int(random.integers(1, 21))
            left -= 1
            name = f"{part}{number}.png"
            (folder / name).write_bytes(to_png(images[number]))
            rows.append((name, labels[number], f"person {person}", part))
        left = 0  # nobody is in both parts
    with (folder / "digits.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "person", "split"), *rows])


def main(names: list[str]) -> None:
    """Trains, exports, and copies the cards, by default all of them."""
    known = {
        "digits": ("digits (digits)", digits_config),
        "people": ("digits (people)", lambda: people_config(RUNS / "people_data")),
        "photos": ("CIFAR-10, 10,000 images", photos_config),
    }
    configs = {name: known[name][1]() for name in names or known}
    for name, config in configs.items():  # all, before any card is changed
        Trainer(config, RUNS / name).run()
    for name in configs:
        shutil.rmtree(RUNS / "models" / name, ignore_errors=True)
        exported = export_saved_model(
            RUNS / name, RUNS / "models" / name, data_name=known[name][0]
        )
        (HERE / name).mkdir(exist_ok=True)
        for file in (JSON_FILE, MARKDOWN_FILE, HTML_FILE):
            shutil.copy(exported / "assets.extra" / file, HERE / name / file)
        entry = to_yaml(read_card(exported))
        write_text_atomic(HERE / name / REGISTRY_FILE, entry)
        print(f"{HERE / name}: written")


if __name__ == "__main__":
    main(sys.argv[1:])
