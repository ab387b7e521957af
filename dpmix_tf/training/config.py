"""The settings of a run, and their defaults."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict

from dpmix_tf.errors import DPMixError


def with_fields(config: ConfigDict, fields: Mapping[str, Any], who: str) -> ConfigDict:
    """Returns a copy of a config with some fields set.

    Args:
      config: see default_config.
      fields: values by dotted name.
      who: sets them, for messages.

    Raises:
      DPMixError: runs have no such field, or it is of another type.
    """
    config = config.copy_and_resolve_references()
    config.lock()
    for name, value in fields.items():
        *path, last = name.split(".")
        part = config
        try:
            for key in path:
                part = part[key]
            if part is config.network or part is config.optimizer:
                with part.unlocked():
                    part[last] = value
            else:
                part[last] = value
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DPMixError(
                f"{who} sets {name} = {value!r}: {str(error)[:300]}"
            ) from error
    return config


def default_pool() -> ConfigDict:
    """Returns the settings of a pool of synthetic images; see bin/generate_pool.py."""
    pool = ConfigDict()
    pool.path = config_dict.placeholder(str)
    pool.generator = "glyphs"  # or leaves, stable_diffusion
    pool.images_per_class = 100
    pool.seed = 0  # public; images of a class are seeded seed, seed + 1, ...
    # The remaining settings are for stable_diffusion.
    pool.version = "1.4"  # KerasCV's StableDiffusion; "2.1" is StableDiffusionV2
    pool.prompts = ("a photo of a {name}",)  # used in turn
    pool.class_prompts = ConfigDict({}, type_safe=False)  # class name -> its own prompt
    pool.negative_prompt = config_dict.placeholder(str)
    pool.generated_size = 512  # pixels, a multiple of 128
    pool.steps = 25
    pool.guidance = 7.5
    pool.batch_size = 4
    pool.mixed_precision = False
    pool.jit_compile = False
    pool.weights = ConfigDict()  # local files; if left out, KerasCV downloads them
    pool.weights.text_encoder = config_dict.placeholder(str)
    pool.weights.diffusion_model = config_dict.placeholder(str)
    pool.weights.decoder = config_dict.placeholder(str)
    pool.weights.vocabulary = config_dict.placeholder(str)
    return pool


def pretrained_network(encoder: str) -> ConfigDict:
    """Returns the `network` settings for a head on a public encoder.

    They are the arguments of dpmix_tf.models.pretrained.
    """
    network = ConfigDict({"name": "pretrained", "encoder": encoder})
    network.weights = config_dict.placeholder(str)
    network.weights = "preset"
    network.sha256 = config_dict.placeholder(str)
    network.trainable = "head"
    network.blocks = 1
    network.image_size = config_dict.placeholder(int)
    network.text_embeddings = config_dict.placeholder(str)
    network.normalise = "none"  # or by public images: leaves, or pool (pool.path)
    network.components = 200
    network.depths = (0,)  # in blocks before the encoder's end
    return network


def default_config() -> ConfigDict:
    """Returns a run's default settings, for a file in configs/ to change.

    Long because it lists every setting.

    Everything that changes the result is outside `run` and `card`, which may differ
    when a run is resumed.
    """
    config = ConfigDict()
    # If left out, the operating system draws a secret seed. For research only: an int
    # in [0, 2**128), to repeat a run, which then has no guarantee.
    config.seed = config_dict.placeholder(int)

    config.data = ConfigDict()
    config.data.name = "digits"  # see dpmix_tf.data.DATASETS
    # TFDS's, an image folder, or what a table's paths are relative to.
    config.data.data_dir = config_dict.placeholder(str)
    config.data.image_size = config_dict.placeholder(int)  # resize to a square
    config.data.channels = config_dict.placeholder(int)  # folders and tables: 1 or 3
    config.data.train_examples = config_dict.placeholder(int)  # default: all
    config.data.validation_fraction = 0.1  # split off from train
    config.data.download = True  # let TFDS download what is missing
    # The remaining settings are for tables, CSV or Parquet.
    config.data.table = config_dict.placeholder(str)
    config.data.path_column = "path"
    config.data.label_column = "label"
    config.data.label_columns = ()  # instead: one column of 0 or 1 per class
    config.data.person = config_dict.placeholder(str)  # column: protects people
    config.data.max_images_per_person = 16  # that an update reads; all count in time
    config.data.split_column = config_dict.placeholder(str)  # default: split, if any
    config.data.class_names = ()  # or a JSON file; default: those in the table

    config.network = ConfigDict({"name": "convnet"})  # and its arguments
    config.dtype_policy = "float32"  # or mixed_bfloat16, if the hardware supports it

    # The fields of dpmix_tf.views.ViewMaker; or microbatch, for NaiveMixup.
    config.views = ConfigDict()
    config.views.base = 16
    config.views.mixed = 18
    config.views.synthetic = 0  # needs pool.path
    config.views.alpha = 0.2
    config.views.mixer = "mixup"  # or another of dpmix_tf.views.mixers, or a choice
    config.views.augment = "crop_flip"
    config.views.padding = 4
    config.views.only_mixed = False
    config.views.labels_only = False
    config.views.same_class = False
    config.views.microbatch = config_dict.placeholder(int)
    # Sets of views per example, made once if the network begins with a frozen encoder;
    # default: new views at every update.
    config.views.visits = config_dict.placeholder(int)
    config.views.seed = 0  # of fixed views; public

    config.pool = default_pool()

    # Trains on the pool, not privately, before the first private update: needs
    # pool.path, with images of what the private ones show.
    config.warm_start = ConfigDict()
    config.warm_start.epochs = 0  # over the pool, each image as its K views; 0: none
    config.warm_start.batch_size = 32  # images
    config.warm_start.learning_rate = 0.001  # of Adam
    # Instead: a folder that bin/pretrain.py has made from the same pool and network.
    config.warm_start.path = config_dict.placeholder(str)

    config.privacy = ConfigDict()  # give either epsilon or noise_multiplier
    config.privacy.epsilon = config_dict.placeholder(float)
    config.privacy.noise_multiplier = config_dict.placeholder(float)
    config.privacy.delta = 1e-5
    config.privacy.expected_batch_size = 256
    config.privacy.updates = 100
    config.privacy.clip_norm = 1.0
    config.privacy.accountant = "pld"
    config.privacy.clipping = (
        "fixed"  # or automatic: every gradient as long as clip_norm
    )
    config.privacy.gamma = 0.01  # of automatic clipping
    # Of bin/tune.py, which sets them: this run is chosen among a drawn number of trials
    # with this mean, and epsilon covers the choice. See PrivacyPlan.
    config.privacy.trials = 1.0
    config.privacy.trials_distribution = "poisson"  # or geometric, logarithmic
    config.privacy.score_noise = config_dict.placeholder(float)
    # Weighs classes by their numbers of records, counted once with noise of this
    # standard deviation, which epsilon covers; default: all alike.
    config.privacy.class_counts_noise = config_dict.placeholder(float)

    # A Keras optimizer. The learning rate may be a schedule: {"name": "CosineDecay",
    # "initial_learning_rate": 4.0, "decay_steps": 100}, in updates.
    config.optimizer = ConfigDict(
        {"name": "SGD", "learning_rate": 1.0}, type_safe=False
    )
    # Memory of a low-pass filter on the noisy gradients, such as 0.9; default: none.
    config.optimizer.low_pass = config_dict.placeholder(float)
    # Gain of a Kalman filter on the noisy gradients, such as 0.5; default: none.
    config.optimizer.kalman_gain = config_dict.placeholder(float)
    config.ema_decay = 0.9999
    # One number in [0, 1] per class, public, such as (1.0, 0.2): what clipped gradients
    # of its images are multiplied by; default: 1.
    config.class_weights = ()

    # For test people who are private too: the only test figure is then the averaged
    # weights' accuracy, with Gaussian noise of this standard deviation on the number of
    # records classified correctly. Default: all test figures, without noise.
    config.report = ConfigDict()
    config.report.noise = config_dict.placeholder(float)

    # What only you know of a model that you release: printed on its privacy card.
    # Changes no result, and so may differ when a run is resumed.
    config.card = ConfigDict()
    config.card.curator = config_dict.placeholder(str)  # who releases the model
    # Government, Industry or Nonprofit.
    config.card.curator_type = config_dict.placeholder(str)
    config.card.purpose = config_dict.placeholder(str)  # why the model was made
    config.card.intended_use = config_dict.placeholder(str)  # what it may be used for
    config.card.region = config_dict.placeholder(str)  # of the data, or its law
    config.card.contact = config_dict.placeholder(str)
    config.card.access = config_dict.placeholder(str)  # who may use the model, and how
    config.card.justification = config_dict.placeholder(str)  # why this epsilon

    config.run = ConfigDict()
    config.run.jit_compile = False  # XLA: slow on CPUs, not yet measured on GPUs
    # Examples vectorised together; affects memory and speed. Default: by the network.
    config.run.chunk_size = config_dict.placeholder(int)
    config.run.evaluate_every = 10  # updates
    config.run.checkpoint_every = 10  # updates
    config.run.keep_checkpoints = 2
    config.run.evaluation_batch_size = 500
    config.run.test = True  # measure test accuracy at the end
    # Folder of encoded views and its numbers' dtype; default: cache/ in the workdir.
    config.run.cache_dir = config_dict.placeholder(str)
    config.run.cache_dtype = "float16"  # or float32
    config.run.private_metrics = False  # log training loss and norms without noise
    return config
