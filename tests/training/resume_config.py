"""A run long enough to be killed in: 60 updates on digits."""

from dpmix_tf.training import default_config


def get_config():
    config = default_config()
    config.seed = 5
    config.network.update(name="convnet", widths=(8,), groups=4)
    config.views.base, config.views.mixed, config.views.padding = 4, 2, 1
    config.privacy.update(
        epsilon=8.0, delta=1e-4, expected_batch_size=60, updates=60, accountant="rdp"
    )
    config.run.evaluate_every = 20
    config.run.checkpoint_every = 5
    return config
