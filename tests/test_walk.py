"""One batch from disk to weights: the modules it passes, in order."""

import re
import sys
import threading
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

import dpmix_tf
from dpmix_tf import views
from dpmix_tf.data import ImageFolderSource, PoissonBatches
from dpmix_tf.training import DPMixModel
from tests.conftest import ROOT, plan_for, tiny_network

PACKAGE = Path(dpmix_tf.__file__).parent
# Tools of several stations, not stations.
TOOLS = {"pixels", "privacy/randomness", "images", "files", "values"}


@pytest.fixture
def photos(tmp_path):
    random = np.random.default_rng(0)
    for index in range(20):
        path = tmp_path / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 256, (8, 8), np.uint8)).save(path)
    return ImageFolderSource(tmp_path, (8, 8, 1))


def entered(run):
    """Modules of ours that `run` enters, in order of the first call into each."""
    found = {}

    def trace(frame, event, argument):
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(PACKAGE):
            module = path.relative_to(PACKAGE).with_suffix("").as_posix()
            if module not in TOOLS and not frame.f_code.co_name.startswith("<"):
                found.setdefault(module, frame.f_code.co_name)

    threading.setprofile(trace)  # tf.data reads in threads of its own
    sys.setprofile(trace)
    try:
        run()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return list(found)


def test_one_batch_walks_from_disk_to_weights_as_the_design_says(photos):
    plan = plan_for(len(photos), batch=6, updates=2)
    model = DPMixModel(
        tiny_network(num_classes=2),
        plan=plan,
        views=views.dp_mix_self(base=2, mixed=1, padding=1),
    )
    model.compile(keras.optimizers.SGD(0.1))
    batches = PoissonBatches(photos, plan)
    walked = entered(lambda: model.train_step(next(iter(batches))))
    page = (ROOT / "docs" / "design.md").read_text()
    stations = re.findall(r"^\| \d \| `([\w/]+)\.py` \|", page, re.MULTILINE)
    rows = re.findall(r"^\| (`[^|]+`) \| [^|]+ \|$", page, re.MULTILINE)
    helpers = set(re.findall(r"`([\w/]+)\.py`", " ".join(rows)))
    assert len(stations) <= 8
    assert [module for module in walked if module not in helpers] == stations
    assert helpers == set(walked) - set(stations)
