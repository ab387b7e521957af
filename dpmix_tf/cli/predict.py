r"""Classifies images on disk, with a trained model or on a server.

python bin/predict.py --workdir=runs/digits scan1.png scan2.jpg
python bin/predict.py --workdir=runs/digits --format=json photos/
python bin/predict.py --server=http://localhost:8501 --model_name=digits scan1.png
python bin/predict.py --server=grpc://localhost:8500 --model_name=digits --repeat=1000 \
    --concurrency=8 photos/
"""

import functools
import itertools
import json
import sys
import time
from collections.abc import Callable
from concurrent import futures
from pathlib import Path

from absl import flags

from dpmix_tf.cli import common
from dpmix_tf.cli.startup import start_tensorflow
from dpmix_tf.errors import DPMixError
from dpmix_tf.files import local_path
from dpmix_tf.images import image_files, read_image
from dpmix_tf.serving.client import Answer, connect

_WORKDIR = common.define_workdir("The --workdir of a training run; or give --server.")
_WEIGHTS = flags.DEFINE_enum(
    "weights", "ema", ["ema", "raw"], "Averaged weights, or those of the last update."
)
_SERVER = flags.DEFINE_string(
    "server",
    None,
    "A TensorFlow Serving server: http://host:8501 (REST) or grpc://host:8500.",
)
_MODEL_NAME = flags.DEFINE_string(
    "model_name", "dpmix", "The model's name in the server's models.config."
)
_TIMEOUT = flags.DEFINE_float(
    "timeout", 10.0, "Seconds to wait for the server's answer."
)
_RETRIES = flags.DEFINE_integer(
    "retries", 4, "How often to retry while the server is unreachable."
)
_REPEAT = flags.DEFINE_integer(
    "repeat",
    None,
    "Load test: send this many requests, cycling through the images, and report "
    "requests per second and latencies.",
    lower_bound=1,
)
_CONCURRENCY = flags.DEFINE_integer(
    "concurrency", 1, "Number of concurrent requests in a load test.", lower_bound=1
)
_FORMAT = flags.DEFINE_enum("format", "table", ["table", "json"], "Output format.")
_TOP = flags.DEFINE_integer(
    "top", 1, "How many classes to show per image.", lower_bound=1
)


def _main(argv: list[str]) -> None:
    if (_WORKDIR.value is None) == (_SERVER.value is None):
        raise DPMixError("Give either --workdir or --server. See --help.")
    if _REPEAT.value and _SERVER.value is None:
        raise DPMixError("--repeat load-tests a server: give --server too.")
    given = [local_path(name, "An image") for name in argv]
    paths = [path for name in given for path in image_files(name)]
    if not paths:
        raise DPMixError("No images: give image files, or folders of them.")
    classify = _local() if _SERVER.value is None else _remote()
    if _REPEAT.value:
        _check_load(classify, paths)
        return
    results = []
    for path in paths:
        result: dict[str, object] = {"path": str(path)}
        try:
            answer = classify(path)
        except DPMixError as error:
            results.append(result | {"error": str(error)})
            continue
        top = slice(_TOP.value)
        results.append(
            result
            | {
                "classes": answer.classes[top],
                "probabilities": [round(p, 6) for p in answer.probabilities[top]],
            }
        )
    if _FORMAT.value == "json":
        print(json.dumps(results, indent=2))
    else:
        _print_table(results)
    if any("error" in result for result in results):
        sys.exit(1)


def _local() -> Callable[[Path], Answer]:
    """Returns a function that classifies here, with a run's newest checkpoint."""
    start_tensorflow()
    import numpy as np

    from dpmix_tf.serving.signatures import probabilities_of
    from dpmix_tf.training import restore_network

    network, metadata = restore_network(_WORKDIR.value, weights=_WEIGHTS.value)

    def classify(path: Path) -> Answer:
        image = read_image(path, tuple(metadata["image_shape"]))
        probabilities = probabilities_of(network, image[np.newaxis])[0].numpy()
        best = np.argsort(-probabilities)
        names = [metadata["class_names"][index] for index in best]
        return Answer(names, [float(p) for p in probabilities[best]])

    return classify


def _remote() -> Callable[[Path], Answer]:
    """Returns a function that classifies on the server."""
    client = connect(
        _SERVER.value,
        _MODEL_NAME.value,
        timeout=_TIMEOUT.value,
        retries=_RETRIES.value,
    )

    @functools.lru_cache(maxsize=1000)  # a load test reads the same files repeatedly
    def read(path: Path) -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            raise DPMixError(f"Cannot read {path}: {error.strerror}.") from error

    return lambda path: client.classify(read(path))


def _check_load(classify: Callable[[Path], Answer], paths: list[Path]) -> None:
    """Sends many requests; prints their rate and percentiles of the latency."""
    import numpy as np

    classify(paths[0])  # connects, and fails if it must, before the clock starts

    def timed(path: Path) -> float:
        started = time.perf_counter()
        classify(path)
        return time.perf_counter() - started

    started = time.perf_counter()
    with futures.ThreadPoolExecutor(_CONCURRENCY.value) as threads:
        asked = itertools.islice(itertools.cycle(paths), _REPEAT.value)
        latencies = list(threads.map(timed, asked))
    took = time.perf_counter() - started
    percentiles = np.percentile(latencies, [50, 90, 99, 100]) * 1000
    report = {
        "requests": len(latencies),
        "requests_per_second": round(len(latencies) / took, 1),
        **{
            f"latency_{name}_ms": round(float(value), 2)
            for name, value in zip(
                ("p50", "p90", "p99", "max"), percentiles, strict=True
            )
        },
    }
    if _FORMAT.value == "json":
        print(json.dumps(report, indent=2))
    else:
        for name, value in report.items():
            print(f"{name.replace('_', ' '):<20} {value}")


def _print_table(results: list[dict]) -> None:
    width = max(len(result["path"]) for result in results)
    for result in results:
        if "error" in result:
            print(f"{result['path']:<{width}}  error: {result['error']}")
            continue
        ranked = zip(result["classes"], result["probabilities"], strict=True)
        cells = "  ".join(f"{name} {value:.4f}" for name, value in ranked)
        print(f"{result['path']:<{width}}  {cells}")


def main() -> None:
    """Entry point."""
    common.run(_main, sys.modules[__name__])
