"""The commands: one absl main each, thin."""

import os

# TensorFlow's start-up chatter, before anything imports it; errors still show.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
