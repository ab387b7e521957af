"""The trained model out: SavedModel, privacy card, TensorFlow Serving."""
