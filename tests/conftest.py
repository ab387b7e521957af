"""Shared by all tests: quiet TensorFlow, small real data, small plans."""

import contextlib
import json
import os
import signal
import socket
import zlib
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import pytest

from dpmix_tf.data import ArraySource, load_dataset
from dpmix_tf.models import convnet
from dpmix_tf.privacy import PrivacyPlan

ROOT = Path(__file__).parent.parent


def plan_for(num_examples, *, batch=8, updates=10, noise=1.0, clip=1.0, **more):
    return PrivacyPlan(
        noise_multiplier=noise,
        delta=1e-5,
        num_examples=num_examples,
        expected_batch_size=batch,
        updates=updates,
        clip_norm=clip,
        accountant="rdp",
        **more,
    )


def tiny_network(num_classes=10, input_shape=(8, 8, 1)):
    return convnet(
        input_shape=input_shape, num_classes=num_classes, widths=(8,), groups=4
    )


def free_ports(count):
    """Ports below those that the system hands out, so that nobody is given them next.

    Each process begins to look elsewhere.
    """
    first = 10_000 + os.getpid() * 16 % 20_000
    found = []
    for port in range(first, first + 1000):
        with contextlib.suppress(OSError), socket.create_server(("", port)):
            found.append(port)
        if len(found) == count:
            return found
    raise AssertionError("no free ports")


def spending(workdir):
    """What privacy.json says, but for the random names of runs."""
    record = json.loads((workdir / "privacy.json").read_text())
    for entry in record["ledger"]:
        del entry["run"]
    return record


def train_command(workdir, *more):
    """Trains tests/training/resume_config.py; after the interpreter."""
    config = ROOT / "tests" / "training" / "resume_config.py"
    train = ROOT / "bin" / "train.py"
    return [str(train), f"--config={config}", f"--workdir={workdir}", *more]


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_is_heard():
    """Shells start background processes deaf to SIGINT, and children inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def same_initial_weights(request):
    """A tolerance that holds today holds tomorrow; each test has its own weights."""
    keras.utils.set_random_seed(zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture(scope="session")
def digits():
    return load_dataset("digits")


@pytest.fixture(scope="session")
def source(digits):
    """200 real digits: enough to sample from, quick to train on."""
    return ArraySource(*digits.train.read(np.arange(200)))


@pytest.fixture(scope="session")
def cifar10_dir():
    """CIFAR-10 prepared by TFDS, where a developer has it beside the project."""
    return _prepared("cifar10")


@pytest.fixture(scope="session")
def fashion_mnist_dir():
    """Likewise for Fashion-MNIST."""
    return _prepared("fashion_mnist")


def _prepared(name):
    folder = ROOT.parent / "shared" / "tfds"
    if not (folder / name).is_dir():
        pytest.skip(f"needs {name} prepared by TFDS in ../shared/tfds")
    return str(folder)
