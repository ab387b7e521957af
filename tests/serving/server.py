"""A stand-in for TensorFlow Serving's server: its protocols, on loopback sockets.

It speaks the real protobuf service and the documented REST paths and runs a real
SavedModel. It is not TensorFlow Serving: no batching, no polling, newest version only.
"""

import base64
import contextlib
import json
import re
import threading
import time
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from dpmix_tf.serving.privacy_card import exported_versions


class NotFoundError(Exception):
    """No such model."""


class StandIn(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Serves models on two ports.

    Args:
      models: name -> folder of versions.
      rest_port: 0 for a free one.
      grpc_port: the same.
    """

    def __init__(self, models, rest_port=0, grpc_port=0):
        self._models = {
            name: tf.saved_model.load(str(folder / str(exported_versions(folder)[-1])))
            for name, folder in models.items()
        }
        self.delay = 0.0  # seconds before an answer
        self.requests = 0
        self.start(rest_port, grpc_port)

    def start(self, rest_port, grpc_port):
        """Serves what was loaded; again, after a stop."""
        self._rest = ThreadingHTTPServer(("127.0.0.1", rest_port), _handler(self))
        self.rest_port = self._rest.server_address[1]
        threading.Thread(target=self._rest.serve_forever, daemon=True).start()
        self._grpc = grpc.server(
            futures.ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)]
        )
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
            self, self._grpc
        )
        self.grpc_port = self._grpc.add_insecure_port(f"127.0.0.1:{grpc_port}")
        self._grpc.start()

    def stop(self):
        self._rest.shutdown()
        self._rest.server_close()
        self._grpc.stop(None).wait()

    def run(self, name, signature, inputs):
        """Output name -> tensor; inputs by name, or the value of the only one."""
        self.requests += 1
        time.sleep(self.delay)
        if name not in self._models:
            raise NotFoundError(f"Servable not found for request: Latest({name})")
        signatures = self._models[name].signatures
        if signature not in signatures:
            raise ValueError(
                f'Serving signature name: "{signature}" not found in signature def'
            )
        specs = signatures[signature].structured_input_signature[1]
        if not isinstance(inputs, dict):
            (only,) = specs
            inputs = {only: inputs}
        return signatures[signature](
            **{name: tf.constant(inputs[name], specs[name].dtype) for name in specs}
        )

    def Predict(self, request, context):  # noqa: N802, the service's name
        try:
            outputs = self.run(
                request.model_spec.name,
                request.model_spec.signature_name or "serving_default",
                {name: tf.make_ndarray(part) for name, part in request.inputs.items()},
            )
        except NotFoundError as error:
            context.abort(grpc.StatusCode.NOT_FOUND, str(error))
        except (ValueError, tf.errors.InvalidArgumentError) as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        response = predict_pb2.PredictResponse()
        for name, tensor in outputs.items():
            response.outputs[name].CopyFrom(tf.make_tensor_proto(tensor.numpy()))
        return response


def _handler(server):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):  # noqa: N802, http.server's name
            body = self.rfile.read(int(self.headers["Content-Length"]))
            match = re.fullmatch(
                r"/v1/models/([^/:]+)(?:/versions/\d+)?:predict", self.path
            )
            if match is None:
                return self._send(404, {"error": f"Malformed request: {self.path}"})
            try:
                request = json.loads(body)
                outputs = server.run(
                    match[1],
                    request.get("signature_name", "serving_default"),
                    _decoded(request["instances"]),
                )
            except NotFoundError as error:
                return self._send(404, {"error": str(error)})
            except (KeyError, ValueError, tf.errors.InvalidArgumentError) as error:
                return self._send(400, {"error": str(error)})
            arrays = {name: tensor.numpy() for name, tensor in outputs.items()}
            rows = range(len(next(iter(arrays.values()))))
            predictions = [
                {name: _listed(array[row]) for name, array in arrays.items()}
                for row in rows
            ]
            return self._send(200, {"predictions": predictions})

        def _send(self, status, content):
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            with contextlib.suppress(BrokenPipeError):
                self.wfile.write(data)

        def log_message(self, *unused):
            pass

    return Handler


def _decoded(instances):
    """Rows of plain values or {"b64": ...}."""
    return [
        base64.b64decode(row["b64"]) if isinstance(row, dict) else row
        for row in instances
    ]


def _listed(array):
    return [
        value.decode() if isinstance(value, bytes) else float(value) for value in array
    ]
