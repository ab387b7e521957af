"""Embeds texts in CLIP's space, for a head that starts as a zero-shot classifier."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from keras_cv.models.feature_extractor import CLIPTextEncoder
from keras_cv.models.stable_diffusion import SimpleTokenizer

from dpmix_tf.errors import DPMixError
from dpmix_tf.files import local_path
from dpmix_tf.models.encoders import ClipWeights, download_weights
from dpmix_tf.weights import load_weights

_TEXT_TOWER = {
    "transformer_width": 512,
    "transformer_layers": 12,
    "transformer_heads": 8,
    "vocab_size": 49408,
    "embed_dim": 512,
    "context_length": 77,
}


def embed_texts(
    texts: Sequence[str], *, weights: str, vocabulary: str | None = None
) -> np.ndarray:
    """Embeds texts, such as "a photo of a cat", with the text tower of CLIP ViT-B.

    Saved with np.save, one per class in the data's order, they serve as `pretrained`'s
    text_embeddings: the head starts as the zero-shot classifier.

    Args:
      texts: n texts.
      weights: "preset" or the path of KerasCV's weights of both towers (H5).
      vocabulary: path of CLIP's byte-pair vocabulary; by default, KerasCV downloads it.

    Returns:
      float32 [n,512].

    Raises:
      DPMixError: the weights are unavailable, or a text is longer than 77 tokens.
    """
    tower = CLIPTextEncoder(**_TEXT_TOWER)
    tower.build((None, tower.context_length))
    if weights == "preset":
        weights = download_weights("clip-vit-base-patch16")
    load_weights(ClipWeights(text_encoder=tower), weights)
    if vocabulary is not None:
        vocabulary = str(local_path(vocabulary, "The vocabulary"))
    encoded = [SimpleTokenizer(vocabulary).encode(text) for text in texts]
    longest = max(map(len, encoded))
    if longest > tower.context_length:
        raise DPMixError(
            f"A text is {longest} tokens long; CLIP reads {tower.context_length}."
        )
    tokens = np.array([code + [0] * (longest - len(code)) for code in encoded])
    x = tower.token_embedding(tokens)
    x += tower.positional_embedding(np.arange(longest))
    # No token sees later ones. (The tower's own call only adds 1 to their scores.)
    later = np.triu(np.full((longest, longest), -1e9, np.float32), k=1)
    x = tower.ln_final(tower.encoder(x, causal_attention_mask=later))
    ends = np.array([len(code) - 1 for code in encoded])
    return np.asarray(tower.text_projector(tf.gather(x, ends, batch_dims=1)))
