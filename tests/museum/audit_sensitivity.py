"""An exhibit: half the noise where one example may move the sum by two clip norms."""

from dpmix_tf.auditing import audit_one_run
from dpmix_tf.training import default_config
from tests.museum.exhibits import Exhibit, noise_halved


def audited_naive_mixup():
    """A white-box audit of a short training run with naive mixup on digits."""
    config = default_config()
    config.network.update(name="convnet", widths=(16, 32), groups=4)
    config.views.base, config.views.mixed, config.views.microbatch = 1, 0, 8
    config.views.augment = "none"
    config.privacy.update(
        epsilon=4.0, delta=1e-4, expected_batch_size=200, updates=12, accountant="pld"
    )
    audit = audit_one_run(config, image_canaries=0, gradient_canaries=4_000, seed=7)
    bound = f"epsilon >= {audit.epsilon:.2f}, while {audit.claimed[0]:.2f} is claimed"
    return audit.refuted, bound


EXHIBITS = [Exhibit("half the noise in naive mixup", noise_halved, audited_naive_mixup)]
