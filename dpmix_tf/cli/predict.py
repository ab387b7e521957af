r"""Classifies images on disk, with a trained model or on a server.

python bin/predict.py --workdir=runs/digits scan1.png scan2.jpg
python bin/predict.py --workdir=runs/digits --format=json photos/
python bin/predict.py --workdir=runs/digits --table=scans.csv --output=predicted.csv
python bin/predict.py --server=http://localhost:8501 --model_name=digits scan1.png
python bin/predict.py --server=grpc://localhost:8500 --model_name=digits --repeat=1000 \
    --concurrency=8 photos/
"""

import functools
import itertools
import json
import sys
import time
from collections.abc import Callable, Sequence
from concurrent import futures
from pathlib import Path

from absl import flags

from dpmix_tf.cli import common
from dpmix_tf.cli.startup import start_tensorflow
from dpmix_tf.errors import DPMixError
from dpmix_tf.files import local_path
from dpmix_tf.images import image_files, read_image
from dpmix_tf.serving.client import Answer, Classify, connect

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
    "concurrency",
    1,
    "Number of concurrent requests to a server, in a load test or for a table.",
    lower_bound=1,
)
_TABLE = flags.DEFINE_string(
    "table",
    None,
    "A CSV or Parquet file that lists the images, instead of naming them; --output is "
    "then the table with its predictions.",
)
_OUTPUT = flags.DEFINE_string("output", None, "The CSV file to write for --table.")
_PATH_COLUMN = flags.DEFINE_string(
    "path_column", "path", "Name of the column of --table that holds paths."
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir",
    None,
    "The folder that paths in --table are relative to; default: the table's own.",
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
    if _TABLE.value or _OUTPUT.value:
        _classify_table(argv)
        return
    given = [local_path(name, "An image") for name in argv]
    paths = [path for name in given for path in image_files(name)]
    if not paths:
        raise DPMixError("No images: give image files, or folders of them.")
    if _REPEAT.value:
        _check_load(_remote(), paths)
        return
    classify, _ = _classifier()
    results = []
    for path in paths:
        result: dict[str, object] = {"path": str(path)}
        (answer,) = classify([path])
        if isinstance(answer, DPMixError):
            results.append(result | {"error": str(answer)})
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


def _classify_table(argv: list[str]) -> None:
    """Writes the predictions for --table; exits with 1 if there is an error in one."""
    if not (_TABLE.value and _OUTPUT.value):
        raise DPMixError("Give --table and --output together. See --help.")
    if argv or _REPEAT.value:
        raise DPMixError(
            f"--table lists the images; received also {' '.join(argv) or '--repeat'}. "
            "Give one of the two."
        )
    start_tensorflow()
    from dpmix_tf.cli.predictions import write_predictions

    classify, names = _classifier()
    rows, failed = write_predictions(
        classify,
        names,
        _TABLE.value,
        _OUTPUT.value,
        path_column=_PATH_COLUMN.value,
        folder=_DATA_DIR.value,
    )
    errors = f"; {failed:,} of them could not be classified" if failed else ""
    print(f"Wrote {_OUTPUT.value}: {rows:,} images{errors}.")
    if failed:
        sys.exit(1)


def _classifier() -> tuple[Classify, Sequence[str] | None]:
    """Returns a function that classifies, and the class names where they are known."""
    if _SERVER.value is None:
        return _local()
    one = _remote()

    def attempt(path: Path) -> Answer | DPMixError:
        try:
            return one(path)
        except DPMixError as error:
            return error

    def classify(paths: Sequence[Path]) -> list[Answer | DPMixError]:
        with futures.ThreadPoolExecutor(_CONCURRENCY.value) as threads:
            return list(threads.map(attempt, paths))

    return classify, None


def _local() -> tuple[Classify, Sequence[str]]:
    """Returns a function that classifies here, with a run's newest checkpoint."""
    start_tensorflow()
    import numpy as np

    from dpmix_tf.data.sources import DECODERS
    from dpmix_tf.serving.signatures import probabilities_of
    from dpmix_tf.tasks import SINGLE_LABEL
    from dpmix_tf.training import restore_network

    network, metadata = restore_network(_WORKDIR.value, weights=_WEIGHTS.value)
    names, task = metadata["class_names"], metadata.get("task", SINGLE_LABEL)

    def read(path: Path) -> np.ndarray | DPMixError:
        try:
            return read_image(path, tuple(metadata["image_shape"]))
        except DPMixError as error:
            return error

    def classify(paths: Sequence[Path]) -> list[Answer | DPMixError]:
        with futures.ThreadPoolExecutor(DECODERS) as threads:
            answers: list = list(threads.map(read, paths))
        readable = [i for i, it in enumerate(answers) if isinstance(it, np.ndarray)]
        if readable:
            images = np.stack([answers[index] for index in readable])
            found = probabilities_of(network, images, task).numpy()
            for index, scores in zip(readable, found, strict=True):
                best = np.argsort(-scores)
                answers[index] = Answer(
                    [names[label] for label in best], [float(p) for p in scores[best]]
                )
        return answers

    return classify, names


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
