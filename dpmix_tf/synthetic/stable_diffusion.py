"""Fills a pool by KerasCV's Stable Diffusion: class names in, labelled images out."""

import contextlib
import io
import re
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any, NamedTuple

import keras
import keras_cv
import numpy as np
import tensorflow as tf
from keras_cv.models import stable_diffusion as parts
from keras_cv.src.models.stable_diffusion.diffusion_model import DiffusionModelV2
from PIL import Image
from tqdm import tqdm

from dpmix_tf.errors import DPMixError
from dpmix_tf.files import local_path
from dpmix_tf.images import fit_image
from dpmix_tf.synthetic.pool import PoolWriter
from dpmix_tf.weights import digest, load_weights

MAX_PROMPT_TOKENS = 77


class Version(NamedTuple):
    """A published version of Stable Diffusion, with its parts in KerasCV."""

    pipeline: type
    text_encoder: type
    diffusion_model: type
    licence: str


VERSIONS = {
    "1.4": Version(
        keras_cv.models.StableDiffusion,
        parts.TextEncoder,
        parts.DiffusionModel,
        "CreativeML Open RAIL-M",
    ),
    "2.1": Version(
        keras_cv.models.StableDiffusionV2,
        parts.TextEncoderV2,
        DiffusionModelV2,
        "CreativeML Open RAIL++-M",
    ),
}


def clean_name(class_name: str) -> str:
    """Cleans up a class name for use in a prompt.

    "/a/airplane_cabin" -> "airplane cabin" (SUN397), "001.ak47" -> "ak47" and
    "airplanes-101" -> "airplanes" (Caltech-256), "Abyssinian_cat" -> "Abyssinian cat".
    """
    name = re.sub(r"^/?[a-z]/", "", class_name)
    name = re.sub(r"^\d+\.", "", name)
    name = re.sub(r"-101$", "", name)
    return re.sub(r"[\s_/-]+", " ", name).strip()


def prompt_for(
    class_name: str,
    index: int,
    prompts: Sequence[str],
    class_prompts: Mapping[str, str],
) -> str:
    """Returns the prompt of a class's image number `index`; templates alternate."""
    if class_name in class_prompts:
        return class_prompts[class_name]
    return prompts[index % len(prompts)].format(name=clean_name(class_name))


class Generator:
    """KerasCV's Stable Diffusion pipeline, with weights whose digests are recorded.

    Args:
      settings: `config.pool` as a dict, see training/config.py.

    Raises:
      DPMixError: the version is unknown, the size is not a multiple of 128, or weights
        are missing, broken or of another model.
    """

    def __init__(self, settings: Mapping[str, Any]):
        version, size = settings["version"], settings["generated_size"]
        if version not in VERSIONS:
            raise DPMixError(
                f"pool.version must be one of {', '.join(VERSIONS)}; received: "
                f"{version!r}."
            )
        if size < 128 or size % 128:
            raise DPMixError(
                f"pool.generated_size must be a multiple of 128, received: {size}."
            )
        if settings["steps"] < 2:
            raise DPMixError(
                f"pool.steps must be 2 or more, received: {settings['steps']}."
            )
        self._settings = settings
        self.digests: dict[str, str] = {}
        if settings["mixed_precision"]:
            keras.mixed_precision.set_global_policy("mixed_float16")
        self._pipeline = self._build(VERSIONS[version], size)
        self._encoded: dict[str, np.ndarray] = {}

    def _build(self, version: Version, size: int):
        with contextlib.redirect_stdout(io.StringIO()):  # the licence: we show it once
            pipeline = version.pipeline(
                size, size, jit_compile=self._settings["jit_compile"]
            )
        make = {
            "text_encoder": lambda **kw: version.text_encoder(MAX_PROMPT_TOKENS, **kw),
            "diffusion_model": lambda **kw: version.diffusion_model(
                size, size, MAX_PROMPT_TOKENS, **kw
            ),
            "decoder": lambda **kw: parts.Decoder(size, size, **kw),
        }
        weights = self._settings["weights"]
        for part, build in make.items():
            if weights[part] is None:
                model = self._downloaded(part, build)
            else:
                path = local_path(weights[part], f"pool.weights.{part}")
                self.digests[part] = digest(path)
                model = build(download_weights=False)
                load_weights(model, path)
            if self._settings["jit_compile"]:
                model.compile(jit_compile=True)
            setattr(pipeline, f"_{part}", model)
        vocabulary = weights["vocabulary"]
        if vocabulary is not None:
            vocabulary = str(local_path(vocabulary, "pool.weights.vocabulary"))
            self.digests["vocabulary"] = digest(vocabulary)
        pipeline._tokenizer = self._downloaded(
            "vocabulary", lambda: parts.SimpleTokenizer(vocabulary)
        )
        return pipeline

    def _downloaded(self, part: str, build):
        """Builds a part whose weights KerasCV downloads and checks itself."""
        try:
            model = build()
        except Exception as error:  # any network error
            raise DPMixError(
                f"KerasCV cannot download Stable Diffusion's {part} "
                f"({type(error).__name__}: {str(error)[:200]}). Without network "
                f"access, give the file with --config.pool.weights.{part}=PATH."
            ) from error
        self.digests.setdefault(part, f"downloaded by keras-cv {_keras_cv_version()}")
        return model

    def description(self) -> dict[str, Any]:
        """Returns the description of the generator for a pool's manifest."""
        settings = self._settings
        return {
            "name": "stable_diffusion",
            "version": settings["version"],
            "licence": VERSIONS[settings["version"]].licence,
            "keras_cv": _keras_cv_version(),
            "weights": dict(sorted(self.digests.items())),
            **{
                key: settings[key]
                for key in (
                    "generated_size",
                    "steps",
                    "guidance",
                    "negative_prompt",
                    "mixed_precision",
                )
            },
        }

    def images(self, prompts: Sequence[str], seeds: Sequence[int]) -> np.ndarray:
        """Generates one image per prompt, each from noise with its own seed.

        Args:
          prompts: at most `batch_size` prompts.
          seeds: one per prompt.

        Returns:
          uint8 [n, generated_size, generated_size, 3]. An image depends on its prompt
          and seed, not on the rest of the batch: short batches are padded, so that
          every batch has the same shape and therefore the same arithmetic.
        """
        settings = self._settings
        count, batch = len(prompts), settings["batch_size"]
        rows = [*range(count), *[0] * (batch - count)]
        side = settings["generated_size"] // 8
        noise = np.stack(
            [
                tf.random.stateless_normal(
                    [side, side, 4], [seeds[row], 0], alg="philox"
                )
                for row in rows
            ]
        )
        context = np.stack([self._encode(prompts[row]) for row in rows])
        with contextlib.redirect_stdout(io.StringIO()):  # a progress bar per batch
            made = self._pipeline.generate_image(
                tf.constant(context),
                negative_prompt=settings["negative_prompt"],
                batch_size=batch,
                num_steps=settings["steps"],
                unconditional_guidance_scale=settings["guidance"],
                diffusion_noise=tf.constant(noise),
            )
        return np.asarray(made)[:count]

    def _encode(self, prompt: str) -> np.ndarray:
        if prompt not in self._encoded:
            try:
                encoded = self._pipeline.encode_text(prompt)
            except ValueError as error:
                raise DPMixError(
                    f"The prompt {prompt!r} was rejected: {error}"
                ) from error
            self._encoded[prompt] = np.asarray(encoded)[0]
        return self._encoded[prompt]


def fill(
    writer: PoolWriter,
    generator: Generator,
    work: Sequence[tuple[str, int, str]],
    batch_size: int,
) -> None:
    """Generates the images of `work` that the pool does not have yet.

    Args:
      writer: the pool's writer.
      generator: makes the images.
      work: (class name, seed, prompt) of every requested image.
      batch_size: number of images generated at a time.
    """
    missing = [item for item in work if not writer.path(*item[:2]).exists()]
    with tqdm(total=len(work), initial=len(work) - len(missing), unit="image") as bar:
        for start in range(0, len(missing), batch_size):
            batch = missing[start : start + batch_size]
            made = generator.images([item[2] for item in batch], [i[1] for i in batch])
            for (class_name, seed, prompt), pixels in zip(batch, made, strict=True):
                writer.add(
                    class_name,
                    seed,
                    fit_image(Image.fromarray(pixels), writer.image_shape),
                    {"generator": "stable_diffusion", "prompt": prompt},
                )
                bar.update()


def licence_notice(version: str) -> str:
    """Returns the terms that a user accepts; the manifest records the licence too."""
    return (
        f"By using Stable Diffusion {version}'s weights you accept the terms of the "
        f"{VERSIONS[version].licence} licence of their authors. The generated images "
        "count as public data here."
    )


def _keras_cv_version() -> str:
    return metadata.version("keras-cv")
