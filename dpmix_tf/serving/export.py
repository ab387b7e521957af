"""Exports a run's checkpoint as a model that others can use, with its privacy card."""

import contextlib
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from dpmix_tf.data.sources import check_class_names
from dpmix_tf.errors import DPMixError
from dpmix_tf.files import (
    TEMPORARY,
    cannot_write,
    local_path,
    lock_file,
    temporary_folder,
    write_atomic,
    write_folder_atomic,
)
from dpmix_tf.images import to_png
from dpmix_tf.pixels import as_float
from dpmix_tf.privacy import Ledger
from dpmix_tf.serving.privacy_card import exported_versions, make_card, write_card
from dpmix_tf.serving.signatures import add_signatures, probabilities_of
from dpmix_tf.serving.warmup import FILE, read_warmup, write_warmup
from dpmix_tf.tasks import SINGLE_LABEL
from dpmix_tf.training import restore_network
from dpmix_tf.training.workdir import final_event, read_json, recorded_ledger

# Between probabilities that should be equal: logits of tens round to a few 1e-6 of
# themselves, and a sigmoid passes a quarter of that on.
_TOLERANCE = 1e-4
_TRIED = 8  # images on which a model is tested before it is released


def export_saved_model(
    workdir: str | Path,
    output: str | Path,
    *,
    weights: str = "ema",
    research: bool = False,
    **told: Any,
) -> Path:
    """Exports a run's newest checkpoint as a SavedModel for TensorFlow Serving.

    See serving.signatures for its inputs and outputs. Its `assets.extra/` folder holds
    the privacy card and warm-up requests. The model is read back from disk and compared
    with the one in memory before it gets its final name, so a server that polls the
    folder never sees a partial model.

    Args:
      workdir: the folder of a training run, finished or not.
      output: either the folder of all versions, such as models/digits, in which the
        next free version is created; or a free version, such as models/digits/3.
      weights: "ema" or "raw", see training.restore_network.
      research: also export a run whose seed the user chose; its card then says that
        there is no guarantee.
      **told: data_name, audit and evaluation, for the privacy card: see make_card.

    Returns:
      The folder of the version.

    Raises:
      DPMixError: there is no run, its seed was chosen, the version exists already, the
        disk is full, or the exported model answers differently from the one in memory.
    """
    output = local_path(output, "The output")
    told["form"] = "a SavedModel"
    network, metadata, card = _restore(workdir, weights, research, told)
    check_class_names(metadata["class_names"])
    folder = output.parent if output.name.isdecimal() else output
    with _alone_in(folder):
        taken = exported_versions(folder)
        version = int(output.name) if folder != output else max(taken, default=0) + 1
        if version in taken:
            raise DPMixError(
                f"{folder / str(version)} already exists, and servers may be using "
                f"it. Export to {folder}: the next version is {max(taken) + 1}."
            )
        final = folder / str(version)
        with _tensorflow_reported(final):
            write_folder_atomic(
                final, lambda path: _write_saved_model(path, network, metadata, card)
            )
    return final


def export_file(
    workdir: str | Path,
    output: str | Path,
    *,
    weights: str = "ema",
    research: bool = False,
    **told: Any,
) -> Path:
    """Exports a run's newest checkpoint as one file, with its privacy card beside it.

    Args:
      workdir: the folder of a training run.
      output: NAME.keras for the network, float images in [0, 1] -> logits; or
        NAME.tflite for LiteRT, uint8 images [n,H,W,C] -> probabilities. An existing
        file is replaced.
      weights: "ema" or "raw".
      research: also export a run whose seed the user chose; its card then says that
        there is no guarantee.
      **told: data_name, audit and evaluation, for the privacy card: see make_card.

    Returns:
      `output`.

    Raises:
      DPMixError: there is no run, its seed was chosen, `output` has another suffix, the
        disk is full, or the file answers differently from the model in memory.
    """
    output = local_path(output, "The output")
    if output.suffix not in _WRITERS:
        raise DPMixError(
            f"The output must end in {' or '.join(_WRITERS)}; received: {output}."
        )
    write, load, told["form"] = _WRITERS[output.suffix]
    network, metadata, card = _restore(workdir, weights, research, told)
    task = metadata.get("task", SINGLE_LABEL)
    with (
        _alone_in(output.parent),
        _tensorflow_reported(output),
        temporary_folder(output) as folder,
    ):
        temporary = folder / output.name
        write(network, temporary, task)
        images = _random_images(metadata["image_shape"])
        _compare(load(temporary, task)(images), network, images, output, task)
        # A file is never seen with another file's card, only with none for a moment.
        output.unlink(missing_ok=True)
        write_card(card, output.parent, f"{output.name}.")
        data = temporary.read_bytes()
        write_atomic(output, lambda file: file.write(data))
    return output


def _restore(workdir, weights: str, research: bool, told: dict[str, Any]):
    """Returns the network, the checkpoint's metadata and the privacy card.

    Raises:
      DPMixError: there is no run, or its seed was chosen and `research` is not set.
    """
    workdir = local_path(workdir, "The workdir")
    network, metadata = restore_network(workdir, weights=weights)
    spent = workdir / "privacy.json"
    card = make_card(
        metadata=metadata,
        config=read_json(workdir / "config.json"),
        ledger=Ledger.from_list(metadata["ledger"], "The checkpoint").joined(
            recorded_ledger(workdir)
        ),
        weights=weights,
        parameters=network.count_params(),
        final=final_event(workdir),
        test_release=read_json(spent).get("test_release") if spent.exists() else None,
        **told,
    )
    if card["privacy"]["seed_chosen_by_user"] and not research:
        raise DPMixError(
            f"{workdir} was trained with a chosen seed. {card['warning']} To export "
            "this run for research anyway, say --research (research=True): its "
            "privacy card will begin with this warning."
        )
    return network, metadata, card


def _write_saved_model(
    path: Path, network: keras.Model, metadata: dict[str, Any], card: dict[str, Any]
) -> None:
    archive = keras.export.ExportArchive()
    shape = tuple(metadata["image_shape"])
    task = metadata.get("task", SINGLE_LABEL)
    add_signatures(archive, network, metadata["class_names"], shape, task)
    archive.write_out(path, verbose=False)
    extra = path / "assets.extra"
    extra.mkdir()
    images = _random_images(shape)
    write_warmup(
        extra / FILE,
        {
            "serving_default": {"images": images},
            "serving_float": {"images": as_float(images).numpy()},
            "serving_bytes": {"image_bytes": np.array([to_png(i) for i in images])},
        },
        batches=(1, _TRIED),
    )
    write_card(card, extra)
    signatures = tf.saved_model.load(str(path)).signatures
    for name, inputs in read_warmup(extra / FILE):
        count = len(next(iter(inputs.values())))
        answer = signatures[name](**{k: tf.constant(v) for k, v in inputs.items()})
        _compare(answer["probabilities"], network, images[:count], path, task)
        _check_names(answer, metadata["class_names"], path)


def _random_images(image_shape) -> np.ndarray:
    """Returns uint8 [_TRIED,H,W,C] that belong to nobody."""
    random = np.random.default_rng(0)
    return random.integers(0, 256, (_TRIED, *image_shape), dtype=np.uint8)


def _compare(probabilities, network, images, where: Path, task: str) -> None:
    expected = probabilities_of(network, images, task)
    apart = float(np.abs(np.asarray(probabilities) - expected).max())
    if not apart <= _TOLERANCE:
        raise DPMixError(
            f"{where} answers differently from the trained model: probabilities differ "
            f"by up to {apart:.2g}. Nothing was exported."
        )


def _check_names(answer, class_names, where: Path) -> None:
    best = np.argmax(answer["probabilities"], axis=1)
    names = [name.decode() for name in answer["classes"].numpy()[:, 0]]
    if names != [class_names[index] for index in best]:
        raise DPMixError(f"{where} returns wrong class names. Nothing was exported.")


# Every network can be exported in this way.
_ELSE = "Export it as a SavedModel: --output=FOLDER."


def _save_keras(network: keras.Model, path: Path, task: str) -> None:
    del task  # what it saves emits logits
    layers = network._flatten_layers(include_self=False)
    if any(isinstance(layer, keras.layers.TFSMLayer) for layer in layers):
        raise DPMixError(
            "A .keras file cannot hold this network, whose encoder is a SavedModel. "
            f"{_ELSE}"
        )
    network.save(path)


def _load_keras(path: Path, task: str) -> Callable:
    network = keras.models.load_model(path)
    return lambda images: probabilities_of(network, images, task)


def _save_litert(network: keras.Model, path: Path, task: str) -> None:
    archive = keras.export.ExportArchive()
    archive.track(network)
    archive.add_endpoint(
        "serving_default",
        lambda images: {"probabilities": probabilities_of(network, images, task)},
        [tf.TensorSpec([None, *network.input_shape[1:]], tf.uint8, name="images")],
    )
    folder = path.with_suffix("")
    archive.write_out(folder, verbose=False)
    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder))
    with _litert_reported():
        path.write_bytes(converter.convert())


def _load_litert(path: Path, task: str) -> Callable:
    del task  # what it loads answers with probabilities
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a notice that it moves to another package
        interpreter = tf.lite.Interpreter(model_path=str(path))

    def answer(images):
        with _litert_reported():
            signature = interpreter.get_signature_runner()
            return signature(images=images)["probabilities"]

    return answer


@contextlib.contextmanager
def _litert_reported() -> Iterator[None]:
    """Turns LiteRT's errors, such as those about missing operations, into ours."""
    try:
        yield
    except Exception as error:  # whatever the converter and the interpreter raise
        raise DPMixError(
            f"LiteRT cannot run this network: {str(error)[:300]}. {_ELSE}"
        ) from error


_WRITERS: dict[str, tuple[Callable, Callable, str]] = {
    ".keras": (_save_keras, _load_keras, "a Keras file"),
    ".tflite": (_save_litert, _load_litert, "LiteRT, in float32"),
}


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Makes and locks the folder, and removes what killed exports left in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error
    with lock_file(folder / ".lock", wait=True):
        for left in folder.glob(f"{TEMPORARY}*"):
            shutil.rmtree(left, ignore_errors=True)
        yield


@contextlib.contextmanager
def _tensorflow_reported(path: Path) -> Iterator[None]:
    """Turns the errors that TensorFlow raises when it writes files into ours."""
    try:
        yield
    except tf.errors.OpError as error:
        raise DPMixError(
            f"Cannot write {path}: {error.message}. Nothing was exported."
        ) from error
