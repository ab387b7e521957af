"""Warm-up requests, which TensorFlow Serving sends to a model before users can."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

FILE = "tf_serving_warmup_requests"


def write_warmup(
    path: Path, requests: Mapping[str, Mapping[str, np.ndarray]], batches: tuple = (1,)
) -> None:
    """Writes the requests as a TFRecord file of PredictionLog messages.

    Args:
      path: assets.extra/tf_serving_warmup_requests of a SavedModel.
      requests: signature -> input -> array [n,...].
      batches: batch sizes, at most n; each becomes one request per signature.
    """
    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature, inputs in requests.items():
            for size in batches:
                request = predict_pb2.PredictRequest()
                request.model_spec.signature_name = signature
                for name, array in inputs.items():
                    proto = tf.make_tensor_proto(array[:size])
                    request.inputs[name].CopyFrom(proto)
                log = prediction_log_pb2.PredictionLog(
                    predict_log=prediction_log_pb2.PredictLog(request=request)
                )
                writer.write(log.SerializeToString())


def read_warmup(path: Path) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Yields the (signature, inputs) of each request."""
    for record in tf.data.TFRecordDataset(str(path)):
        log = prediction_log_pb2.PredictionLog.FromString(record.numpy())
        request = log.predict_log.request
        yield (
            request.model_spec.signature_name,
            {name: tf.make_ndarray(proto) for name, proto in request.inputs.items()},
        )
