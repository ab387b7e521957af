"""One batch from disk to weights: the modules it passes, in order."""

import functools
import math
import re
import sys
import threading
from collections import Counter
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

import dpmix_tf
from dpmix_tf import views
from dpmix_tf.data import ImageFolderSource, PoissonBatches
from dpmix_tf.training import DPMixModel
from dpmix_tf.views.augment import augmentation
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


@functools.cache
def module_at(file):
    """Our module in a file; None for tools and other people's code."""
    path = Path(file)
    if not path.is_relative_to(PACKAGE):
        return None
    module = path.relative_to(PACKAGE).with_suffix("").as_posix()
    return None if module in TOOLS else module


def entered(run):
    """How often `run` enters our modules, in order of the first call into each.

    A call enters a module if the innermost of our modules that it comes from, through
    whatever code of others, is not that module itself.
    """
    found = Counter()

    def trace(frame, event, argument):
        module = module_at(frame.f_code.co_filename) if event == "call" else None
        if module is None or frame.f_code.co_name.startswith("<"):
            return
        caller = frame.f_back
        while caller and module_at(caller.f_code.co_filename) is None:
            caller = caller.f_back
        if not caller or module_at(caller.f_code.co_filename) != module:
            found[module] += 1

    threading.setprofile(trace)  # tf.data reads in threads of its own
    sys.setprofile(trace)
    try:
        run()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return found


def expected_entries(text, examples, chunks):
    """What the design says in words: "1", "1 per example" or "2 + 1 per chunk"."""
    times = {"": 1, " per example": examples, " per chunk": chunks}
    parts = re.findall(r"(\d)([a-z ]*)", text.replace(" + ", "+"))
    return sum(int(number) * times[per] for number, per in parts)


def test_one_batch_walks_from_disk_to_weights_as_the_design_says(photos):
    plan = plan_for(len(photos), batch=6, updates=1)  # no other batch is read ahead
    model = DPMixModel(
        tiny_network(num_classes=2),
        plan=plan,
        views=views.dp_mix_self(base=2, mixed=1, padding=1),
        chunk_size=2,
    )
    model.compile(keras.optimizers.SGD(0.1))
    augmentation.cache_clear()  # as in a process of its own
    batches = PoissonBatches(photos, plan, seed=1)
    examples = len(batches.indices(0))
    chunks = math.ceil(examples / model.chunk_size)
    assert len({1, examples, chunks}) == 3  # so that a count says which it is
    walked = entered(lambda: model.train_step(next(iter(batches))))
    page = (ROOT / "docs" / "design.md").read_text()
    rows = r"^\| \d \| `([\w/]+)\.py` \|.*\| ([^|]+) \|$"
    told = re.findall(rows, page, re.MULTILINE)
    stations = [module for module, _ in told]
    rows = re.findall(r"^\| (`[^|]+`) \| [^|]+ \|$", page, re.MULTILINE)
    helpers = set(re.findall(r"`([\w/]+)\.py`", " ".join(rows)))
    assert len(stations) <= 8
    assert [module for module in walked if module not in helpers] == stations
    assert helpers == set(walked) - set(stations)
    assert {module: walked[module] for module in stations} == {
        module: expected_entries(text, examples, chunks) for module, text in told
    }
