"""Clients that classify encoded images on a TensorFlow Serving server (REST, gRPC)."""

import base64
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit

from dpmix_tf.errors import DPMixError

_SIGNATURE = "serving_bytes"
_INPUT = "image_bytes"
_BACKOFF = 0.2  # seconds before the second try, doubled before each later one
_LONGEST_BACKOFF = 5.0
_AWAY = (502, 503, 504)  # from a proxy, or a server that is still loading the model


class Answer(NamedTuple):
    """The classification of one image.

    Attributes:
      classes: class names, most probable first.
      probabilities: the probability of each of `classes`.
    """

    classes: list[str]
    probabilities: list[float]


# Paths of images -> for each its answer, or why there is none.
Classify = Callable[[Sequence[Path]], list[Answer | DPMixError]]


class Client(Protocol):
    """A connection to one model on one server; safe to use from several threads."""

    def classify(self, image_bytes: bytes) -> Answer:
        """Classifies one image.

        Args:
          image_bytes: contents of a JPEG or PNG file.

        Raises:
          DPMixError: the server is unreachable or too slow, has no such model or
            signature, or cannot read the image.
        """


def connect(
    server: str, model_name: str, *, timeout: float = 10.0, retries: int = 4
) -> Client:
    """Creates a client; it connects on the first request.

    Args:
      server: http://host:8501 or https://host (REST), or grpc://host:8500.
      model_name: the model's name in the server's models.config.
      timeout: seconds, per try over REST, for all tries of a request over gRPC.
      retries: how often to repeat a request while the server is unreachable
        (connection refused or lost, 502, 503, 504, UNAVAILABLE); 0 or more. The pause
        starts at 0.2 seconds and doubles each time, up to 5. gRPC retries at most
        four times.

    Raises:
      DPMixError: the address has another form, or a number is out of range.
    """
    address = urlsplit(server)
    if not address.hostname or address.scheme not in ("http", "https", "grpc"):
        raise DPMixError(
            "The server must be http://host:8501, https://host or grpc://host:8500; "
            f"received: {server!r}."
        )
    if timeout <= 0 or retries < 0:
        raise DPMixError(
            "timeout must be above 0 and retries 0 or more; received: "
            f"timeout={timeout}, retries={retries}."
        )
    kind = _GrpcClient if address.scheme == "grpc" else _RestClient
    return kind(server, model_name, timeout, retries)


class _RestClient:
    """The REST API: POST /v1/models/NAME:predict."""

    def __init__(self, server: str, model_name: str, timeout: float, retries: int):
        import requests
        from requests.adapters import HTTPAdapter
        from urllib3.exceptions import ReadTimeoutError
        from urllib3.util.retry import Retry

        class RetryUnlessLate(Retry):
            """Does not repeat a request that the server may still be processing."""

            def increment(self, *arguments, error=None, **settings):
                if isinstance(error, ReadTimeoutError):
                    raise error
                return super().increment(*arguments, error=error, **settings)

            def get_backoff_time(self):
                return min(_BACKOFF * 2 ** (len(self.history) - 1), _LONGEST_BACKOFF)

        self._server, self._model, self._timeout = server, model_name, timeout
        self._url = f"{server.rstrip('/')}/v1/models/{model_name}:predict"
        self._errors = requests.exceptions
        # All threads share one session, whose connection pool is thread-safe.
        self._session = requests.Session()
        adapter = HTTPAdapter(
            pool_maxsize=64,
            max_retries=RetryUnlessLate(
                retries,
                status_forcelist=_AWAY,
                respect_retry_after_header=False,  # it would also retry 413 and 429
                allowed_methods=None,  # all methods: a POST changes nothing there
                raise_on_status=False,
            ),
        )
        self._session.mount("http://", adapter)
        self._session.mount("https://", adapter)

    def classify(self, image_bytes: bytes) -> Answer:
        body: Any = {
            "signature_name": _SIGNATURE,
            "instances": [{"b64": base64.b64encode(image_bytes).decode()}],
        }
        try:
            response = self._session.post(self._url, json=body, timeout=self._timeout)
        except self._errors.ConnectTimeout as error:
            raise _away(self._server, "it cannot be reached") from error
        except self._errors.Timeout as error:
            raise _late(self._server, self._timeout) from error
        except self._errors.ConnectionError as error:
            raise _away(self._server, error) from error
        except self._errors.RequestException as error:
            raise DPMixError(f"The request to {self._url} failed: {error}.") from error
        if response.status_code in _AWAY:
            raise _away(self._server, f"{response.status_code} {response.reason}")
        try:
            answer = dict(response.json())
        except (ValueError, TypeError) as error:
            raise DPMixError(
                f"{self._url} answered {response.status_code} without JSON. Is this "
                "TensorFlow Serving's REST port? REST uses 8501 by default, gRPC 8500."
            ) from error
        if response.status_code == 200:
            return _answer_from_json(answer, self._url)
        message = str(answer.get("error", response.text))
        if response.status_code == 404:
            raise _no_model(self._server, self._model, message)
        raise _refused(self._model, message)


def _answer_from_json(answer: Any, url: str) -> Answer:
    try:
        (prediction,) = answer["predictions"]
        return Answer(list(prediction["classes"]), list(prediction["scores"]))
    except (KeyError, TypeError, ValueError) as error:
        raise DPMixError(
            f"The answer of {url} does not have the form of a dpmix_tf model's: "
            f"{json.dumps(answer)[:200]}"
        ) from error


class _GrpcClient:
    """The gRPC API: PredictionService.Predict."""

    def __init__(self, server: str, model_name: str, timeout: float, retries: int):
        import grpc
        import tensorflow as tf
        from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

        self._server, self._model, self._timeout = server, model_name, timeout
        self._grpc, self._tf, self._messages = grpc, tf, predict_pb2
        method: dict[str, Any] = {
            "name": [{"service": "tensorflow.serving.PredictionService"}]
        }
        if retries:
            method["retryPolicy"] = {
                "maxAttempts": retries + 1,
                "initialBackoff": f"{_BACKOFF}s",
                "maxBackoff": f"{_LONGEST_BACKOFF}s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            }
        channel = grpc.insecure_channel(
            urlsplit(server).netloc,
            options=[
                ("grpc.service_config", json.dumps({"methodConfig": [method]})),
                ("grpc.max_receive_message_length", -1),
                ("grpc.max_send_message_length", -1),
                ("grpc.per_rpc_retry_buffer_size", 2**30),  # or photos are not resent
            ],
        )
        self._stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)

    def classify(self, image_bytes: bytes) -> Answer:
        request = self._messages.PredictRequest()
        request.model_spec.name = self._model
        request.model_spec.signature_name = _SIGNATURE
        images = self._tf.make_tensor_proto([image_bytes])
        request.inputs[_INPUT].CopyFrom(images)
        try:
            outputs = self._stub.Predict(request, timeout=self._timeout).outputs
        except self._grpc.RpcError as error:
            code, message = error.code(), error.details() or str(error)
            if code == self._grpc.StatusCode.DEADLINE_EXCEEDED:
                raise _late(self._server, self._timeout) from error
            if code == self._grpc.StatusCode.UNAVAILABLE:
                raise _away(self._server, message) from error
            if code == self._grpc.StatusCode.NOT_FOUND:
                raise _no_model(self._server, self._model, message) from error
            raise _refused(self._model, message) from error
        try:
            names, scores = (
                self._tf.make_ndarray(outputs[name])[0]
                for name in ("classes", "scores")
            )
        except (TypeError, ValueError, IndexError) as error:
            raise DPMixError(
                f"The answer of {self._server} does not have the form of a dpmix_tf "
                f"model's: outputs {sorted(outputs)}."
            ) from error
        return Answer([name.decode() for name in names], [float(p) for p in scores])


def _away(server: str, why: object) -> DPMixError:
    return DPMixError(
        f"There is no answer from {server}: {why}. Is the server up, and is this its "
        "address? REST uses port 8501 by default, gRPC 8500."
    )


def _late(server: str, timeout: float) -> DPMixError:
    return DPMixError(
        f"{server} did not answer within {timeout:g} seconds. Raise --timeout, or "
        "check what is keeping the server busy."
    )


def _no_model(server: str, model: str, message: str) -> DPMixError:
    return DPMixError(
        f"{server} serves no model {model!r}: {message}. Set --model_name to a model "
        "in its models.config."
    )


def _refused(model: str, message: str) -> DPMixError:
    broken = re.search(
        r"((Broken|Unsuitable) image|Invalid (PNG|JPEG))[^\[\]]*", message
    )
    if broken:
        return DPMixError(
            f"The server cannot read the image: {' '.join(broken[0].split())}. "
            "Expected a JPEG or PNG file."
        )
    if re.search("signature.*not found", message, re.IGNORECASE):
        return DPMixError(
            f"The model {model!r} has no signature {_SIGNATURE!r}: {message}. Export "
            "it with bin/export.py."
        )
    return DPMixError(f"The server refused the request: {message[:500]}")
