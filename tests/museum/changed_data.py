"""Data that was replaced by other data of the same size while a run was stopped."""

import contextlib
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
from PIL import Image

from dpmix_tf.data import ExampleSource
from dpmix_tf.errors import DPMixError
from dpmix_tf.training import Trainer, checkpoints, default_config
from tests.museum.exhibits import Exhibit


def _photos(folder, *, changed=False):
    """Images of noise as files of one size; on demand, a tenth of them are others."""
    random = np.random.default_rng(0)
    for index in range(60):
        image = random.integers(0, 256, (8, 8, 3), np.uint8)
        path = folder / "ab"[index % 2] / f"{index}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        other = changed and index % 10 == 0
        Image.fromarray(255 - image if other else image).save(path)
    return folder


def _weights(photos, workdir):
    """Trains, or resumes; the trained weights as one vector."""
    config = default_config()
    config.seed = 3  # secret, and the same for both: a resumed run keeps it
    config.data.update(
        name="image_folder",
        data_dir=str(photos),
        image_size=8,
        validation_fraction=0.0,
    )
    config.network.update(name="convnet", widths=(8,), groups=4)
    config.views.base, config.views.mixed, config.views.padding = 2, 1, 1
    config.privacy.update(
        epsilon=1.0, delta=1e-4, expected_batch_size=20, updates=2, accountant="rdp"
    )
    config.run.checkpoint_every, config.run.keep_checkpoints = 1, 5
    config.run.test = False
    trainer = Trainer(config, workdir)
    before = [v.numpy().ravel() for v in trainer.model.network.trainable_variables]
    trainer.run()
    after = [v.numpy().ravel() for v in trainer.model.network.trainable_variables]
    return np.concatenate(before), np.concatenate(after)


def noise_repeated_on_other_images():
    """How much noise is left between a run and its second half on changed images."""
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder) / "run"
        _, first = _weights(_photos(Path(folder) / "photos"), workdir)
        # Killed before the last checkpoint; somebody then replaces images.
        newest = sorted((workdir / "checkpoints").iterdir())[-1]
        newest.unlink()
        (workdir / "metrics.jsonl").unlink()
        assert checkpoints.load_latest(workdir / "checkpoints")[1]["updates"] == 1
        changed = _photos(Path(folder) / "changed", changed=True)
        try:
            start, second = _weights(changed, workdir)
        except DPMixError as error:
            if "training data has changed" not in str(error):
                raise
            return False, "changed images are noticed, and nothing is resumed"
    left = np.linalg.norm(second - first) / np.linalg.norm(first - start)
    return True, (
        "resumed on changed images; the two second updates differ by "
        f"{left:.3f} of the noisy update: its noise is subtracted away"
    )


@contextlib.contextmanager
def data_known_by_its_size():
    """Fingerprints see the classes, the shape and the number of examples."""

    def fingerprint(self):
        return f"{self.class_names} {self.image_shape} {len(self)}"

    with mock.patch.object(ExampleSource, "fingerprint", fingerprint):
        yield


EXHIBITS = [
    Exhibit(
        "data replaced by other data of the same size",
        data_known_by_its_size,
        noise_repeated_on_other_images,
    )
]
