"""One secret seed, and every stream of random numbers that a run derives from it.

A run owns a single 128-bit seed. Sampling, noise, views and initial weights each use a
stream of their own, derived by SHA-256 with the stream's name, so that no two of them
ever share numbers. Inside a graph, streams are addressed by integers (the update, the
example, the variable), never by state: an update that is repeated after a crash draws
exactly what it drew before.

The underlying generators (Philox in TensorFlow, PCG64 in NumPy) are statistical, not
cryptographic: the guarantee depends on the seed staying secret.
"""

import hashlib
import secrets
from typing import Any

import numpy as np
import tensorflow as tf

from dpmix_tf.errors import DPMixError
from dpmix_tf.privacy.ledger import CHOSEN, SHARED, SYSTEM

SEED_BITS = 128


class Seed(int):
    """A seed that knows where it comes from.

    Attributes:
      origin: SYSTEM, SHARED or CHOSEN.
    """

    origin: str

    def __new__(cls, value: int, origin: str) -> "Seed":
        """Makes a seed.

        Raises:
          DPMixError: the value is not an int in [0, 2**128).
        """
        check_seed(value)
        seed = super().__new__(cls, value)
        seed.origin = origin
        return seed


def as_seed(seed: int | None) -> Seed:
    """Returns the seed to use where a user may give one; a plain int counts as chosen.

    Raises:
      DPMixError: it is neither None nor an int in [0, 2**128).
    """
    if isinstance(seed, Seed):
        return seed
    return fresh_seed() if seed is None else Seed(seed, CHOSEN)


def new_seed(chosen: int | None, shared: int | None = None) -> Seed:
    """Returns the seed of a run that starts now.

    Args:
      chosen: a seed chosen by the user to repeat a run, or None.
      shared: a secret seed that other runs use too, or None.

    Raises:
      DPMixError: both are given, or the seed is not an int in [0, 2**128).
    """
    if shared is None:
        return as_seed(chosen)
    if chosen is not None:
        raise DPMixError(
            "Both a shared and a chosen seed were given. Leave out either config.seed "
            "or shared_seed."
        )
    return Seed(shared, SHARED)


def fresh_seed() -> Seed:
    """Returns 128 random bits from the operating system."""
    return Seed(secrets.randbits(SEED_BITS), SYSTEM)


def check_seed(seed: Any) -> None:
    """Raises DPMixError unless `seed` is an int in [0, 2**128). Never quotes it."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise DPMixError(
            f"seed must be an int or None, received a {type(seed).__name__}."
        )
    if not 0 <= int(seed) < 2**SEED_BITS:
        raise DPMixError(
            f"seed must be in [0, 2**{SEED_BITS}), received a value outside it. "
            "Leave it out to have the operating system draw one."
        )


def derive(seed: int, purpose: str) -> np.ndarray:
    """Derives the seed of one stream.

    Args:
      seed: the run's seed, an int in [0, 2**128).
      purpose: the stream's name, such as "noise".

    Returns:
      int64 array of shape [2]: 128 bits, in the form that TensorFlow's stateless
      operations take.

    Raises:
      DPMixError: the seed is not an int in [0, 2**128).
    """
    check_seed(seed)
    digest = hashlib.sha256(
        b"dpmix_tf/" + purpose.encode() + b"/" + int(seed).to_bytes(16, "big")
    ).digest()
    return np.frombuffer(digest[:16], dtype="<i8").astype(np.int64)


def generator(seed: int, purpose: str) -> np.random.Generator:
    """Returns NumPy's generator of one stream; see `derive` for the arguments."""
    words = [int(word) & (2**64 - 1) for word in derive(seed, purpose)]
    return np.random.default_rng(np.random.SeedSequence(words))


class Stream:
    """One stream's seed, in a variable.

    A constant would be part of the graph, which is written to TensorBoard and
    SavedModels; a variable of a plain object is written nowhere. A variable made in the
    scope of a tf.distribute strategy also takes the first worker's value in every
    worker, so that all draw the same noise.

    Attributes:
      seed: int64 [2].
    """

    def __init__(self, seed: int, purpose: str):
        self.seed = tf.Variable(
            derive(seed, purpose), trainable=False, name=f"{purpose}_seed"
        )


def fold_in_each(seed: tf.Tensor, numbers: tf.Tensor) -> tf.Tensor:
    """Returns the seeds, int64 [n,2], of the sub-streams `numbers`, integers [n]."""
    return tf.map_fn(
        lambda number: fold_in(seed, number),
        numbers,
        fn_output_signature=tf.TensorSpec([2], tf.int64),
    )


def fold_in_pairs(seed: tf.Tensor, numbers: tf.Tensor, others: tf.Tensor) -> tf.Tensor:
    """Returns the seeds, int64 [n,2], of each `numbers`' own sub-stream `others`."""
    return tf.map_fn(
        lambda pair: fold_in(fold_in(seed, pair[0]), pair[1]),
        tf.stack([tf.cast(part, tf.int64) for part in (numbers, others)], axis=1),
        fn_output_signature=tf.TensorSpec([2], tf.int64),
    )


def uniform(seeds: tf.Tensor, count: int) -> tf.Tensor:
    """Draws `count` numbers for each seed; a row depends on its own seed alone.

    Args:
      seeds: int64 [n,2].
      count: numbers per seed, a Python int.

    Returns:
      float32 [n,count] in [0, 1), multiples of 2**-23.
    """
    return tf.map_fn(
        lambda seed: tf.random.stateless_uniform([count], seed, alg="philox"),
        seeds,
        fn_output_signature=tf.TensorSpec([count], tf.float32),
    )


def fold_in(seed: tf.Tensor, number: tf.Tensor | int) -> tf.Tensor:
    """Returns the seed of the `number`-th sub-stream of `seed`.

    `tf.random.fold_in` keeps only 64 of the seed's 128 bits. This keeps them all: the
    number is added to one half, and Philox scrambles the pair.

    Args:
      seed: int64 [2].
      number: integer scalar.

    Returns:
      int64 [2].
    """
    number = tf.cast(number, tf.int64)
    return tf.random.stateless_uniform(
        [2],
        seed=seed + tf.stack([tf.zeros_like(number), number]),
        minval=None,
        maxval=None,
        dtype=tf.int64,
        alg="philox",
    )
