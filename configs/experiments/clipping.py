r"""Does the order of arms depend on how gradients are clipped?

python bin/generate_pool.py --config=configs/digits_diff.py
python bin/experiment.py --config=configs/experiments/clipping.py:digits \
    --workdir=runs/clipping_digits --jobs=2

After the colon: digits (a small network trained whole), or a number of CIFAR-10's
photographs under a frozen encoder, whose pool configs/cifar10_encoder.py describes.
Four arms are each clipped at norm 1, at norm 0.1, and automatically. Nothing is tuned:
learning rate times clip norm is the same, so that a clipped gradient moves the weights
equally far.
"""

from configs import cifar10_encoder, digits_diff
from dpmix_tf.experiments import arms, default_experiment

_CLIPPING = {
    "norm_1": {"clip_norm": 1.0, "clipping": "fixed"},
    "norm_0.1": {"clip_norm": 0.1, "clipping": "fixed"},
    "automatic": {"clip_norm": 1.0, "clipping": "automatic"},
}


def get_config(data: str = "digits"):
    """Returns the experiment's configuration.

    Args:
      data: digits, or a number of photographs.
    """
    if data == "digits":
        base, step = digits_diff.get_config(), 1.0
    else:
        base, step = cifar10_encoder.get_config(data), 0.5
        base.warm_start.epochs = 0
    base.privacy.updates = 60
    base.run.evaluate_every = 60
    base.run.private_metrics = True  # the report says how much was clipped
    compared = {
        f"{name}_{kind}".replace(".", ""): settings
        | {
            "privacy": clipping,
            "optimizer": {"learning_rate": step / clipping["clip_norm"]},
        }
        for kind, clipping in _CLIPPING.items()
        for name, settings in arms(
            "dp_sgd", "self_aug_34", "dp_mix_self", "dp_mix_diff"
        ).items()
    }
    config = default_experiment(base, compared)
    config.title = f"Ways to clip, on {data}"
    config.epsilons = (1.0,)
    config.seeds = 5
    config.baseline = "self_aug_34_norm_1"
    return config
