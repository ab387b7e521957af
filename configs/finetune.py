r"""A linear head on a frozen public encoder, as published (Bao et al. 2023, section 5).

  python bin/train.py --config=configs/finetune.py:oxford_iiit_pet,clip_vit_b16,dp_mix_self \
      --config.privacy.epsilon=1 --workdir=runs/pet

After the colon: a data set (cifar10, cifar100, eurosat, caltech256, sun397 or
oxford_iiit_pet), an encoder (clip_vit_b16 or convnext_base) and an arm (self_aug, with
as many views as dp_mix_self; dp_mix_self; or dp_mix_diff, whose pool
bin/generate_pool.py generates from the same config). Encoder and data are downloaded;
without internet access, give --config.network.weights=PATH and
--config.data.data_dir=PATH. Meant for GPUs.

Published test accuracy in percent, CLIP ViT-B/16 at epsilon = 1 / 2 / 4 / 8:

| data | self_aug | dp_mix_self | dp_mix_diff |
|---|---|---|---|
| Caltech256 | 80.36 / 89.67 / 92.01 / 93.17 | 81.21 / 90.12 / 92.17 / 93.39 | 89.69 / 91.82 / 92.86 / 93.87 |
| SUN397 | 72.65 / 76.02 / 78.05 / 79.54 | 73.19 / 76.45 / 78.67 / 79.57 | 75.12 / 77.78 / 79.47 / 80.57 |
| Oxford Pet | 72.21 / 82.11 / 85.84 / 88.23 | 72.45 / 82.51 / 86.75 / 88.70 | 83.24 / 86.28 / 88.25 / 89.41 |

The published runs started from weights trained on LAION-2B; KerasCV's CLIP has OpenAI's
weights, and keras.applications' ConvNeXt has ImageNet's. The learning rates were not
published; this one was not tuned. The published weight decay of 1e-5 is left out: in
ten epochs it has a negligible effect on a head that starts at zero.
"""  # noqa: E501

from dpmix_tf.errors import DPMixError
from dpmix_tf.experiments import ARMS
from dpmix_tf.training import default_config, pretrained_network

# Numbers of training examples. Ten epochs of batches of 1,000 take 1/100 as many
# updates.
TRAIN = {
    "cifar10": 50_000,
    "cifar100": 50_000,
    "eurosat": 21_600,
    "caltech256": 24_485,
    "sun397": 87_003,
    "oxford_iiit_pet": 3_680,
}
ENCODERS = ("clip_vit_b16", "convnext_base")
PUBLISHED_ARMS = {
    "self_aug": ARMS["self_aug_34"],
    "dp_mix_self": ARMS["dp_mix_self"],
    "dp_mix_diff": ARMS["dp_mix_diff"],
}


def get_config(what: str = "cifar10,clip_vit_b16,dp_mix_self"):
    """Returns the run's configuration.

    Args:
      what: data set, encoder and arm, separated by commas.
    """
    data, encoder, arm = (*what.split(","), "", "")[:3]
    if data not in TRAIN or encoder not in ENCODERS or arm not in PUBLISHED_ARMS:
        raise DPMixError(
            "configs/finetune.py: needs one of each after it, separated by commas: "
            f"{', '.join(TRAIN)}; {', '.join(ENCODERS)}; {', '.join(PUBLISHED_ARMS)}. "
            f"Received: {what!r}."
        )
    config = default_config()
    config.data.name = data
    config.data.validation_fraction = 0.0  # the published runs train on all examples
    config.network = pretrained_network(encoder)
    config.views.update(PUBLISHED_ARMS[arm])
    config.pool.path = f"pools/{data}"
    config.pool.generator = "stable_diffusion"
    config.privacy.epsilon = 8.0
    config.privacy.delta = 1e-5
    config.privacy.expected_batch_size = 1000
    config.privacy.updates = max(1, round(TRAIN[data] / 100))
    config.optimizer.update(name="SGD", learning_rate=1.0)
    config.run.evaluate_every = 100
    config.run.checkpoint_every = 5
    return config
