import pytest
from absl import flags
from ml_collections import config_flags

from dpmix_tf.cli import optional
from tests.conftest import ROOT


def parsed(*overrides):
    """The config of a command line, checked as commands do."""
    optional.accept_none()
    values = flags.FlagValues()
    argv = ["command", f"--config={ROOT}/configs/digits.py", *overrides]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    values(argv)
    optional.refuse_none(values["config"])
    return values["config"].value


def test_none_empties_what_may_be_empty():
    config = parsed(
        "--config.privacy.epsilon=None",
        "--config.privacy.noise_multiplier=2",
        "--config.seed=None",
        "--config.pool.path=None",
    )
    assert config.privacy.epsilon is None and config.privacy.noise_multiplier == 2.0
    assert config.seed is None and config.pool.path is None
    assert parsed("--config.privacy.epsilon=3").privacy.epsilon == 3.0


@pytest.mark.parametrize(
    "field", ["ema_decay", "privacy.updates", "views.mixer", "optimizer.name"]
)
def test_what_needs_a_value_is_named(field):
    with pytest.raises(ValueError, match=f"{field} needs a value, received: None"):
        parsed(f"--config.{field}=None")
