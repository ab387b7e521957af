"""A small vision transformer for small images, from scratch."""

import keras
import keras_cv
from keras import layers


def vision_transformer(
    *,
    input_shape: tuple[int, int, int],
    num_classes: int,
    patch_size: int = 4,
    depth: int = 12,
    width: int = 192,
    heads: int = 3,
    name: str = "vit_tiny",
) -> keras.Model:
    """Builds a ViT (Dosovitskiy et al. 2021); by default ViT-Tiny with 4-pixel patches.

    Of KerasCV's layers, without dropout. Layer normalisation is of each patch on its
    own, so no example meets another.

    Args:
      input_shape: (H, W, C), sides multiples of patch_size; values in [0, 1].
      num_classes: number of logits.
      patch_size: pixels a side.
      depth: transformer blocks.
      width: of a patch's embedding.
      heads: of the attention; must divide width.
      name: the Keras model's name.

    Returns:
      A functional Keras model, float32 [n,H,W,C] -> logits [n,num_classes].
    """
    if any(side % patch_size for side in input_shape[:2]) or width % heads:
        raise ValueError(
            f"patch_size = {patch_size} must divide the image's sides, {input_shape}, "
            f"and heads = {heads} must divide width = {width}."
        )
    inputs = keras.Input(input_shape, name="images")
    x = layers.Rescaling(2.0, offset=-1.0)(inputs)
    x = keras_cv.layers.PatchingAndEmbedding(width, patch_size)(x)
    for _ in range(depth):
        x = keras_cv.layers.TransformerEncoder(
            project_dim=width,
            num_heads=heads,
            mlp_dim=4 * width,
            mlp_dropout=0.0,
            attention_dropout=0.0,
        )(x)
    x = layers.LayerNormalization(epsilon=1e-6)(x)
    x = layers.GlobalAveragePooling1D()(x)
    logits = layers.Dense(num_classes, dtype="float32", name="logits")(x)
    return keras.Model(inputs, logits, name=name)
