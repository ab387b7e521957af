"""The commands, each a thin absl main."""

import os

# Silences TensorFlow's start-up notices before anything imports it; errors still show.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
