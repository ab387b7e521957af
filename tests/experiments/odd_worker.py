"""A worker whose training is a pretence, and goes wrong in some arms."""

import json
import os
import signal

from dpmix_tf.experiments import worker


def train(folder):
    if "raises" in folder.parts:
        raise ValueError("nobody foresaw this")
    if "dies" in folder.parts:
        os.kill(os.getpid(), signal.SIGKILL)
    print("training")
    (folder / "run").mkdir(exist_ok=True)
    final = {"event": "final", "updates": 1, "test_accuracy_ema": 0.5}
    for name, value in {
        "run/metrics.jsonl": final,
        "run/privacy.json": {},
        "run/config.json": json.loads((folder / "settings.json").read_text()),
        "software.json": {"process": os.getpid()},
    }.items():
        (folder / name).write_text(json.dumps(value))


if __name__ == "__main__":
    worker.train = train
    worker.main()
