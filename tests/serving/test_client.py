"""bin/predict.py and its clients against a server, over REST and gRPC."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from dpmix_tf.errors import DPMixError
from dpmix_tf.images import to_png
from dpmix_tf.serving import signatures
from dpmix_tf.serving.client import connect
from dpmix_tf.training import restore_network
from tests.conftest import ROOT, free_ports
from tests.serving.server import StandIn

PROTOCOLS = ("http", "grpc")
BINARY = shutil.which("tensorflow_model_server")


class RealServer:
    """tensorflow_model_server, where it is installed."""

    def __init__(self, models, folder):
        self.rest_port, self.grpc_port = free_ports(2)
        config = folder / "models.config"
        config.write_text(
            "model_config_list {\n"
            + "".join(
                f'config {{ name: "{name}" base_path: "{path}" '
                'model_platform: "tensorflow" }\n'
                for name, path in models.items()
            )
            + "}\n"
        )
        self._process = subprocess.Popen(
            [
                BINARY,
                f"--port={self.grpc_port}",
                f"--rest_api_port={self.rest_port}",
                f"--model_config_file={config}",
            ]
        )
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.rest_port)) == 0:
                    break
            time.sleep(0.2)

    def stop(self):
        self._process.kill()
        self._process.wait()


@pytest.fixture(
    scope="module",
    params=[
        "stand-in",
        pytest.param(
            "tensorflow_model_server",
            marks=pytest.mark.skipif(
                BINARY is None, reason="tensorflow_model_server is not on the PATH"
            ),
        ),
    ],
)
def server(request, exported, tmp_path_factory):
    models = {"digits": exported.parent}
    if request.param == "stand-in":
        running = StandIn(models)
    else:
        running = RealServer(models, tmp_path_factory.mktemp("server"))
    yield running
    running.stop()


def address(server, protocol):
    port = server.rest_port if protocol == "http" else server.grpc_port
    return f"{protocol}://127.0.0.1:{port}"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_server_answers_as_the_model_does(server, protocol, trained, images):
    client = connect(address(server, protocol), "digits")
    network, metadata = restore_network(trained)
    probabilities = signatures.probabilities_of(network, images).numpy()
    for image, row in zip(images, probabilities, strict=True):
        answer = client.classify(to_png(image))
        order = np.argsort(-row)
        assert answer.classes == [metadata["class_names"][i] for i in order]
        np.testing.assert_allclose(answer.probabilities, row[order], atol=1e-6)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_errors_of_the_server_say_what_to_do(server, protocol, images):
    where = address(server, protocol)
    with pytest.raises(DPMixError, match="cannot read the image.*JPEG nor a PNG"):
        connect(where, "digits").classify(b"GIF89a")
    with pytest.raises(DPMixError, match="cannot read the image"):
        connect(where, "digits").classify(to_png(images[0])[:50])
    twelve = tf.io.encode_png(np.full((8, 8, 1), 4095, np.uint16)).numpy()
    with pytest.raises(DPMixError, match="cannot read the image.*Stretch it"):
        connect(where, "digits").classify(twelve)
    with pytest.raises(DPMixError, match="serves no model 'faces'.*--model_name"):
        connect(where, "faces").classify(to_png(images[0]))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_model_without_the_signature_is_told(server, protocol, images, monkeypatch):
    monkeypatch.setattr("dpmix_tf.serving.client._SIGNATURE", "serving_sounds")
    with pytest.raises(DPMixError, match="no signature 'serving_sounds'"):
        connect(address(server, protocol), "digits").classify(to_png(images[0]))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_late_server_is_not_waited_for(exported, protocol, images):
    server = StandIn({"digits": exported.parent})
    server.delay = 2.0
    client = connect(address(server, protocol), "digits", timeout=0.5)
    with pytest.raises(DPMixError, match="did not answer within 0.5 seconds"):
        client.classify(to_png(images[0]))
    assert server.requests <= 1  # nor asked twice
    server.stop()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_nobody_at_the_address(protocol):
    (port,) = free_ports(1)
    client = connect(f"{protocol}://127.0.0.1:{port}", "digits", retries=1)
    with pytest.raises(DPMixError, match="There is no answer.*Is the server up"):
        client.classify(b"")


def test_the_wrong_port_is_noticed(server, images):
    with pytest.raises(DPMixError, match="8501"):
        connect(f"http://127.0.0.1:{server.grpc_port}", "digits", retries=0).classify(
            to_png(images[0])
        )


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_restarted_server_is_found_again(exported, protocol, images):
    server = StandIn({"digits": exported.parent})
    ports = server.rest_port, server.grpc_port
    client = connect(address(server, protocol), "digits")
    first = client.classify(to_png(images[0]))
    server.stop()
    timer = threading.Timer(1.0, server.start, ports)
    timer.start()
    assert client.classify(to_png(images[0])) == first  # asks until it is back
    timer.join()
    server.stop()


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"server": "localhost:8501"}, "http://host:8501"),
        ({"server": "ftp://localhost"}, "http://host:8501"),
        ({"timeout": 0}, "timeout must be above 0"),
        ({"retries": -1}, "retries 0 or more"),
    ],
)
def test_addresses_and_numbers_are_checked(settings, words):
    settings = {"server": "http://localhost:8501", "model_name": "x"} | settings
    with pytest.raises(DPMixError, match=words):
        connect(**settings)


def predict(*arguments):
    return subprocess.run(
        [sys.executable, str(ROOT / "bin" / "predict.py"), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_the_command_asks_a_server_as_it_asks_a_run(server, trained, images, tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    for index, image in enumerate(images):
        (folder / f"{index}.png").write_bytes(to_png(image))
    (folder / "large.jpg").touch()
    Image.fromarray(images[0, ..., 0]).resize((40, 40)).save(folder / "large.jpg")
    (folder / "zero.png").write_bytes(b"\0")
    options = ["--format=json", "--top=2", str(folder)]
    answers = [predict(f"--workdir={trained}", *options)]
    for protocol in PROTOCOLS:
        where = [f"--server={address(server, protocol)}", "--model_name=digits"]
        answers.append(predict(*where, *options))
    results = []
    for done in answers:
        assert done.returncode == 1, done.stderr  # there is one broken image
        results.append(json.loads(done.stdout))
        assert "image" in results[-1].pop()["error"]
    for other in results[1:]:
        for mine, theirs in zip(results[0], other, strict=True):
            assert mine["path"] == theirs["path"]
            # Larger images are resized by Pillow here and by TensorFlow there.
            near = 1e-6 if mine["path"].endswith("png") else 0.02
            if near < 0.01:
                assert mine["classes"] == theirs["classes"]
            np.testing.assert_allclose(
                mine["probabilities"], theirs["probabilities"], atol=2 * near
            )


@pytest.mark.slow
def test_a_load_check_reports_rate_and_latencies(server, images, tmp_path):
    (tmp_path / "x.png").write_bytes(to_png(images[0]))
    where = [f"--server={address(server, 'http')}", "--model_name=digits"]
    load = ["--repeat=40", "--concurrency=4", "--format=json"]
    done = predict(*where, *load, str(tmp_path / "x.png"))
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["requests"] == 40 and report["requests_per_second"] > 0
    assert report["latency_p50_ms"] <= report["latency_p99_ms"]
    done = predict(*where[:1], "--model_name=faces", *load, str(tmp_path / "x.png"))
    assert done.returncode == 2 and "serves no model" in done.stderr
