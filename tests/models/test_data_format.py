import keras
import pytest

from dpmix_tf.errors import DPMixError
from dpmix_tf.models import validate_network
from tests.conftest import tiny_network


@pytest.fixture
def channels_first():
    keras.config.set_image_data_format("channels_first")
    yield
    keras.config.set_image_data_format("channels_last")


def test_a_network_is_refused_while_keras_puts_channels_first(request):
    network = tiny_network()
    validate_network(network)
    request.getfixturevalue("channels_first")
    with pytest.raises(DPMixError, match="Set it to 'channels_last'"):
        validate_network(network)
