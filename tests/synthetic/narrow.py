"""Generates a pool by KerasCV's Stable Diffusion with a fifth of the U-Net's channels.

All classes are KerasCV's. The full U-Net has 860 million weights: to build, write and
read them takes most of a test's time, and shows nothing more.
"""

from keras_cv.src.models.stable_diffusion import diffusion_model

from dpmix_tf.cli import generate_pool


def narrow(set_attribute=setattr):
    """Makes DiffusionModel ask for narrower blocks."""
    block, transformer = diffusion_model.ResBlock, diffusion_model.SpatialTransformer
    set_attribute(diffusion_model, "ResBlock", lambda channels: block(channels // 5))
    set_attribute(
        diffusion_model,
        "SpatialTransformer",
        lambda heads, size, **settings: transformer(heads, size // 5, **settings),
    )


if __name__ == "__main__":
    narrow()
    generate_pool.main()
