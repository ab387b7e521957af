"""Two views and lambda -> one view and the weight of the first one's label."""

import tensorflow as tf


def mixup(
    first: tf.Tensor, second: tf.Tensor, lam: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Blends pixels: lam * first + (1 - lam) * second (Zhang et al. 2018).

    Args:
      first: float [...,H,W,C].
      second: float [...,H,W,C].
      lam: float [...] in [0, 1].

    Returns:
      The blend, [...,H,W,C], in the value range of the inputs; the weight of the first
      view's label, [...].
    """
    weight = tf.cast(lam, first.dtype)[..., tf.newaxis, tf.newaxis, tf.newaxis]
    return weight * first + (1 - weight) * second, lam


# Candidates for each Gamma variate: at most one in twenty is turned down, so that all
# eight are about once in 4e10 draws; the last one is then taken as it is.
_CANDIDATES = 8
# Uniform numbers that one draw of `beta` uses.
BETA_DRAWS = 2 * (2 * _CANDIDATES + 1)


def beta(draws: tf.Tensor, alpha: float) -> tf.Tensor:
    """Draws lambda ~ Beta(alpha, alpha).

    A Beta variate is a ratio of Gamma variates, and Gamma(alpha) underflows to 0 for
    small alpha: 0/0. Here the logarithms are compared: Gamma(alpha) has the law of
    Gamma(alpha + 1) * U**(1/alpha) (Devroye 1986, chapter IX.3), whose logarithm is
    finite, and lambda = sigmoid(log G1 - log G2). Gamma(alpha + 1) is drawn by
    rejection (Marsaglia and Tsang 2000) from a fixed number of candidates, for all
    examples at once: TensorFlow's own sampler takes one seed a call.

    Args:
      draws: uniform numbers in [0, 1), float32 [...,BETA_DRAWS].
      alpha: above 0.

    Returns:
      float32 [...] in [0, 1].
    """
    first, second = tf.split(draws, 2, axis=-1)
    return tf.sigmoid(_log_gamma(first, alpha) - _log_gamma(second, alpha))


def _log_gamma(draws: tf.Tensor, alpha: float) -> tf.Tensor:
    """Logarithms of Gamma(alpha) variates, [...], from uniform numbers."""
    proposal, decision, power = tf.split(draws, [_CANDIDATES, _CANDIDATES, 1], axis=-1)
    # The middle of its cell: neither 0 nor 1, where the normal quantile is infinite.
    normal = tf.math.ndtri(proposal + 2.0**-24)
    d = alpha + 1.0 - 1.0 / 3.0
    log_cube = 3.0 * tf.math.log(tf.maximum(1.0 + normal / (9.0 * d) ** 0.5, 1e-30))
    bound = 0.5 * tf.square(normal) + d * (1.0 - tf.exp(log_cube) + log_cube)
    accepted = tf.math.log1p(-decision) < bound
    # The first accepted candidate; the last one if there is none.
    last = tf.one_hot(_CANDIDATES - 1, _CANDIDATES, on_value=True, off_value=False)
    chosen = tf.argmax(tf.cast(accepted | last, tf.int32), axis=-1)
    log_above = tf.math.log(d) + tf.gather(
        log_cube, chosen, axis=-1, batch_dims=log_cube.shape.rank - 1
    )
    return log_above + tf.math.log1p(-power[..., 0]) / alpha
