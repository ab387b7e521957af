"""Every path that a user can give: `~` is expanded, remote addresses are refused."""

import errno
import fcntl
import os
from types import SimpleNamespace

import keras
import pytest
import tensorflow_datasets as tfds

from configs.experiments import digits_arms
from dpmix_tf.data import ImageFolderSource, describe_dataset, load_dataset, registry
from dpmix_tf.errors import DPMixError
from dpmix_tf.experiments import Runner, Study
from dpmix_tf.models import build_network
from dpmix_tf.serving import export
from dpmix_tf.serving.privacy_card import read_card
from dpmix_tf.synthetic import SyntheticPool, fill, maintenance
from dpmix_tf.synthetic.pool import PoolWriter
from dpmix_tf.training import default_config, restore_network
from dpmix_tf.training.restore import restore_data
from dpmix_tf.training.workdir import WorkDir
from dpmix_tf.weights import digest, load_weights


def pool(folder):
    shape, generator = (8, 8, 1), {"name": "import"}
    PoolWriter(folder, class_names="ab", image_shape=shape, generator=generator)


def head(**arguments):
    shape = (8, 8, 3)
    build_network("pretrained", input_shape=shape, num_classes=2, arguments=arguments)


DOORS = {
    "workdir": lambda path: WorkDir(path, default_config()).close(),
    "restore_network": restore_network,
    "restore_data": lambda path: restore_data(path, {}),
    "export_file": lambda path: export.export_file("nowhere", f"{path}.h5"),
    "export_saved_model": lambda path: export.export_saved_model(path, "models"),
    "card": read_card,
    "experiment": lambda path: Runner(Study(digits_arms.get_config()), path),
    "image folder": lambda path: ImageFolderSource(path, (8, 8, 1)),
    "data_dir": lambda path: load_dataset("image_folder", data_dir=path),
    "classes": lambda path: describe_dataset("image_folder", data_dir=path),
    "pool": pool,
    "loaded pool": SyntheticPool.load,
    "repaired pool": maintenance.repair,
    "merged pool": lambda path: maintenance.merge([path], "merged"),
    "import": lambda path: fill.import_folder("pool", path, "ab", (8, 8, 1)),
    "digest": digest,
    "weights": lambda path: load_weights(keras.Sequential(), path),
    "encoder": lambda path: head(encoder=path),
    "KerasHub's encoder": lambda path: head(encoder=f"keras_hub:{path}"),
    "encoder's weights": lambda path: head(encoder="clip_vit_b16", weights=path),
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder, and a home folder beside it."""
    for name in ("here", "home"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.mark.parametrize("door", DOORS)
def test_a_tilde_is_expanded_wherever_a_path_is_given(door, here):
    said = ""
    try:
        DOORS[door]("~/there")
    except DPMixError as error:
        said = str(error)
    there = here.parent / "home" / "there"
    assert there.exists() or str(there) in said
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("door", DOORS)
def test_a_remote_address_is_refused_and_no_folder_is_named_after_it(door, here):
    with pytest.raises(DPMixError, match="remote address: gs://bucket/x"):
        DOORS[door]("gs://bucket/x")
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "handed_on"),
    [("gs://bucket/data", "gs://bucket/data"), ("~/data", "{home}/data"), (None, None)],
)
def test_tfds_reads_remote_data_and_gets_a_tilde_expanded(
    given, handed_on, here, monkeypatch
):
    asked = []

    def builder(name, data_dir):
        asked.append(data_dir)
        labels = SimpleNamespace(names=["a"])
        return SimpleNamespace(info=SimpleNamespace(features={"label": labels}))

    monkeypatch.setattr(tfds, "builder", builder)
    describe_dataset("cifar10", data_dir=given)
    assert asked == [handed_on and handed_on.format(home=here.parent / "home")]


def test_the_command_that_prepares_data_can_be_pasted_into_a_shell():
    builder = SimpleNamespace(data_dir_root="/my data/tfds")
    with pytest.raises(DPMixError, match="cifar10 '--data_dir=/my data/tfds'\n"):
        registry._prepare(builder, "cifar10", download=False)


@pytest.mark.parametrize("door", ["workdir", "experiment", "export_file"])
def test_nothing_is_written_where_the_disk_has_no_locks(door, here, monkeypatch):
    def flock(file, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    def start(path):
        if door == "export_file":
            with export._alone_in(here):
                pytest.fail("not alone")
        elif door == "experiment":
            Runner(Study(digits_arms.get_config()), path).run()
        else:
            WorkDir(path, default_config())

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(DPMixError, match="no file locks"):
        start(here / "run")
    assert not [path for path in here.rglob("*.json*") if path.is_file()]
