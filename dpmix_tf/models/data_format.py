"""Checks that Keras keeps images as [n,H,W,C]."""

import keras

from dpmix_tf.errors import DPMixError


def require_channels_last() -> None:
    """Refuses channels_first: layers would mistake rows of pixels for channels.

    Raises:
      DPMixError: Keras is set to channels_first.
    """
    if keras.config.image_data_format() != "channels_last":
        raise DPMixError(
            "dpmix_tf's images are [n,H,W,C], and Keras is set to image_data_format = "
            f"{keras.config.image_data_format()!r}. Set it to 'channels_last' where it "
            "was set: in ~/.keras/keras.json (or $KERAS_HOME/keras.json), or by "
            "keras.config.set_image_data_format."
        )
