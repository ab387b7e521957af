"""The networks that are timed."""

import keras

from dpmix_tf.models import convnet, wide_resnet

CIFAR = {"input_shape": (32, 32, 3), "num_classes": 10}


def linear_probe():
    """A frozen WRN-16-4 with a trainable logistic regression on its features."""
    network = wide_resnet(**CIFAR)
    for layer in network.layers[:-1]:
        layer.trainable = False
    return network


def wide_dense():
    """Many weights for little computation: what it sends dominates an update."""
    inputs = keras.Input(CIFAR["input_shape"])
    values = keras.layers.Dense(2_560, "relu")(keras.layers.Flatten()(inputs))
    return keras.Model(inputs, keras.layers.Dense(CIFAR["num_classes"])(values))


NETWORKS = {
    "digits": lambda: convnet(input_shape=(8, 8, 1), num_classes=10),
    "convnet": lambda: convnet(**CIFAR, widths=(16, 32, 64)),
    "wide_resnet_16_1": lambda: wide_resnet(**CIFAR, width=1),
    "wide_resnet_16_4": lambda: wide_resnet(**CIFAR),
    "linear_probe": linear_probe,
    "wide_dense": wide_dense,
}
