"""Two views and lambda -> one view and the weight of the first one's label."""

import tensorflow as tf

from dpmix_tf.privacy import randomness


def mixup(
    first: tf.Tensor, second: tf.Tensor, lam: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Blends pixels: lam * first + (1 - lam) * second (Zhang et al. 2018).

    Args:
      first: float [n,H,W,C].
      second: float [n,H,W,C].
      lam: float [n] in [0, 1].

    Returns:
      The blend, [n,H,W,C], in the value range of the inputs; the weight of the first
      view's label, [n].
    """
    weight = tf.cast(lam, first.dtype)[:, tf.newaxis, tf.newaxis, tf.newaxis]
    return weight * first + (1 - weight) * second, lam


def beta(count: int, alpha: float, seed: tf.Tensor) -> tf.Tensor:
    """Draws lambda ~ Beta(alpha, alpha).

    A Beta variate is a ratio of Gamma variates, and Gamma(alpha) underflows to 0 for
    small alpha: 0/0, or an even blend where the sampler stops at the smallest float.
    Here the logarithms are compared instead: Gamma(alpha) has the law of Gamma(alpha +
    1) * U**(1/alpha) (Devroye 1986, chapter IX.3), whose logarithm is finite, and
    lambda = sigmoid(log G1 - log G2).

    Args:
      count: how many, a Python int.
      alpha: above 0.
      seed: int64 [2].

    Returns:
      float32 [count] in [0, 1].
    """

    def log_gamma(stream: int) -> tf.Tensor:
        own = randomness.fold_in(seed, stream)
        above = tf.random.stateless_gamma(
            [count], seed=randomness.fold_in(own, 0), alpha=alpha + 1.0
        )
        uniform = tf.random.stateless_uniform(
            [count], seed=randomness.fold_in(own, 1), alg="philox"
        )
        return tf.math.log(above) + tf.math.log1p(-uniform) / alpha

    return tf.sigmoid(log_gamma(0) - log_gamma(1))
