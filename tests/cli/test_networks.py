"""--config.network.name: another network than the configuration file's."""

import subprocess
import sys

import pytest
from ml_collections import ConfigDict

from dpmix_tf.cli.networks import switch_network
from dpmix_tf.errors import DPMixError
from dpmix_tf.models import build_network
from dpmix_tf.training import default_config
from tests.conftest import ROOT


def from_file():
    config = default_config()
    config.network.update(name="convnet", widths=(8, 16), groups=4)
    config.lock()
    return config


@pytest.mark.parametrize(
    "flags",
    [
        ["--config.network.name=vision_transformer"],
        ["--config.network.name", "vision_transformer"],
        ["--config.network.name=convnet", "-config.network.name=vision_transformer"],
    ],
)
def test_another_networks_name_brings_its_own_arguments(flags, capsys):
    config = switch_network(from_file(), ["train", "--config=x.py", *flags])
    expected = {"patch_size": 4, "depth": 12, "width": 192, "heads": 3}
    assert config.network.to_dict() == expected | {"name": "vision_transformer"}
    said = capsys.readouterr().err
    assert "vision_transformer instead of the file's convnet" in said
    assert "groups=4, widths=(8, 16)" in said
    with pytest.raises(AttributeError, match="depth"):
        config.network.dept = 3  # a typo is an error as before


def test_an_experiments_base_is_switched_too():
    config = ConfigDict({"base": from_file()})
    switch_network(config, ["--config.base.network.name=scattering"])
    assert {"name", "hidden", "features"} <= set(config.base.network)
    assert "widths" not in config.base.network


def test_arguments_without_a_default_can_be_set():
    config = switch_network(from_file(), ["--config.network.name=pretrained"])
    config.network.encoder, config.network.image_size = "clip_vit_b16", 32
    with pytest.raises(TypeError):
        config.network.image_size = "large"


@pytest.mark.parametrize("name", ["convnet", "vgg"])
def test_the_same_name_and_unknown_ones_change_nothing(name, capsys):
    config = switch_network(from_file(), [f"--config.network.name={name}"])
    assert config.network.to_dict() == from_file().network.to_dict()
    assert not capsys.readouterr().err


def test_left_over_arguments_are_named_with_those_that_are_taken():
    with pytest.raises(DPMixError, match="no argument widths.*patch_size, depth"):
        build_network(
            "vision_transformer",
            input_shape=(8, 8, 1),
            num_classes=3,
            arguments={"widths": (8,), "depth": 2},
        )


@pytest.mark.slow
def test_the_command_line_switches_before_it_sets_fields(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "bin" / "train.py"),
            "--config=configs/digits.py",
            "--config.network.name=vision_transformer",
            "--config.network.depth=2",
            "--config.network.dept=2",
            f"--workdir={tmp_path}",
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 2
    assert 'Did you mean "depth"' in done.stderr
    assert "note: the network is vision_transformer" in done.stderr
