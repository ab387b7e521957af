"""An exhibit: data replaced by other data of the same size while a run was stopped."""

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
    """Writes images of noise, all of the same size; `changed` replaces a tenth."""
    random = np.random.default_rng(0)
    for index in range(60):
        image = random.integers(0, 256, (8, 8, 3), np.uint8)
        path = folder / "ab"[index % 2] / f"{index}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        other = changed and index % 10 == 0
        Image.fromarray(255 - image if other else image).save(path)
    return folder


def _weights(photos, workdir):
    """Trains or resumes; returns the weights before and after, each as one vector."""
    config = default_config()
    config.seed = 3  # secret, and the same for both, as a resumed run keeps its seed
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
    """The noise left between an update and its repetition on changed images."""
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder) / "run"
        _, first = _weights(_photos(Path(folder) / "photos"), workdir)
        # The run is killed before its last checkpoint; then images are replaced.
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
            return False, "the change is detected, and the run does not resume"
    left = np.linalg.norm(second - first) / np.linalg.norm(first - start)
    return True, (
        "the run resumes; the two second updates differ by "
        f"{left:.3f} of a noisy update: the noise cancels"
    )


@contextlib.contextmanager
def data_known_by_its_size():
    """Fingerprints cover only the classes, the shape and the number of examples."""

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
