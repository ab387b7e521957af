"""Pools of synthetic images from Stable Diffusion for the published data sets.

  python bin/generate_pool.py --config=configs/pools.py:eurosat

The part after the colon is one of cifar10, cifar100, eurosat, caltech256, sun397 and
oxford_iiit_pet. Class names are cleaned for the prompts ("/a/airplane_cabin" becomes
"airplane cabin", "001.ak47" becomes "ak47"); where a name alone would mislead the
model, its prompt is given here. Prompts are written from the public class names, never
by looking at the private images. Caltech256 needs --config.data.data_dir=FOLDER, whose
subfolders name the classes.
"""

from dpmix_tf.training import default_config

_EUROSAT = {
    "AnnualCrop": "annual crop land",
    "Forest": "a forest",
    "HerbaceousVegetation": "herbaceous vegetation",
    "Highway": "a highway crossing the countryside",
    "Industrial": "industrial buildings",
    "Pasture": "pasture land",
    "PermanentCrop": "permanent crops, orchards and vineyards",
    "Residential": "a residential area",
    "River": "a river",
    "SeaLake": "open sea or a lake",
}

_CALTECH256 = {
    "257.clutter": "a photo of random background clutter, no object in the centre",
    "103.hibiscus": "a photo of a hibiscus flower",
    "112.human-skeleton": "a photo of a human skeleton model",
}

# Templates for each data set; several are used in turn.
_PROMPTS = {
    "cifar10": ("a photo of a {name}",),
    "cifar100": ("a photo of a {name}",),
    "eurosat": ("a satellite photo of {name}",),
    "caltech256": ("a photo of a {name}",),
    "sun397": ("a photo of a {name}", "a photo of a scene, {name}"),
    "oxford_iiit_pet": (
        "a photo of a {name}, a breed of pet",
        "a close-up photo of a {name} pet",
    ),
}


def get_config(name="cifar10"):
    """Returns the configuration of one data set's pool."""
    if name not in _PROMPTS:
        raise ValueError(f"there is no pool {name!r}; choose from {list(_PROMPTS)}")
    config = default_config()
    config.data.name = name
    config.pool.path = f"pools/{name}"
    config.pool.generator = "stable_diffusion"
    config.pool.images_per_class = 100
    config.pool.prompts = _PROMPTS[name]
    if name == "eurosat":
        config.pool.class_prompts.update(
            {key: f"a satellite photo of {words}" for key, words in _EUROSAT.items()}
        )
    if name == "caltech256":
        config.pool.class_prompts.update(_CALTECH256)
    return config
