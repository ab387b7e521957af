"""Export of trained models: SavedModel, privacy card, TensorFlow Serving."""
