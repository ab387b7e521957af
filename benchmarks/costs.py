"""What a private training run costs: the formulas, and what they assume.

Times are of one update on W accelerators in machines of eight:

  update = max(compute + all-reduce + apply, input)
  compute     3 F K B / (W u P)      forward and backward over all views
              + 6 x 4 p B / (W H)    and, for a head, one gradient per record in memory
  all-reduce  l + 2 (W - 1) / W x 4 p / n       if W > 1
  apply       10 x 4 p / H           noise, mean, optimizer, averages; on each of them
  input       sampling, which each process does for the whole batch, and reading

with F operations of a forward pass of one view, K views, B examples, p weights, u the
utilisation of the peak P, H the memory's bandwidth, n the network's, l its latency.
"""

import dataclasses

MACHINE = 8  # accelerators

# Name -> (value, words, source). None of these was measured here.
ASSUMED = {
    "peak": (312e12, "312 TFLOP/s in bfloat16", "NVIDIA A100 data sheet"),
    "memory": (1_555e9, "1,555 GB/s of memory", "NVIDIA A100 40 GB data sheet"),
    "inside": (300e9, "300 GB/s between 8, per direction", "NVLink, same data sheet"),
    "outside": (25e9, "25 GB/s between machines, per accelerator",
                "200 Gb/s adapters, NVIDIA DGX A100 data sheet"),
    "cores": (16, "16 processor cores per accelerator", "NVIDIA DGX A100 data sheet"),
    "host": (1e12, "1 TB of memory per machine", "NVIDIA DGX A100 data sheet"),
    "disk": (2e9, "2 GB/s from each machine's disk", "our choice"),
    "encoder": (0.35, "35 % of the peak while encoding", "our choice"),
    "training": (0.15, "15 % of the peak while training a network of small images",
                 "our choice"),
    "passes": (6, "6 passes over a head's gradients of single records", "our choice"),
    "applied": (10, "10 passes over the weights to apply an update", "our choice"),
    "vit": (2 * 17.56e9, "35.1 GFLOP for one 224 x 224 image by ViT-B/16",
            "torchvision's table of weights, 17.56 billion multiply-adds"),
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A training run.

    Attributes:
      name: of data and network.
      examples: N.
      batch: B, expected.
      updates: number of updates.
      views: K.
      weights: p, trained.
      forward: F, operations of the trained part per view.
      features: numbers per encoded view; 0 where the whole network is trained.
      image_bytes: of one image as it is read in training.
      encoder: operations of the frozen part per view.
    """

    name: str
    examples: int
    batch: int
    updates: int
    views: int
    weights: int
    forward: float
    features: int = 0
    image_bytes: int = 0
    encoder: float = 0.0

    @property
    def stored_bytes(self) -> int:
        """Of all encoded views in float16, each with two classes and their weights."""
        return self.examples * self.views * (2 * self.features + 16)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """What was measured on this machine.

    Attributes:
      sampling: (N, B) -> seconds to draw one batch.
      decoded: JPEG images read and resized per second and core.
      examined: image files examined per second at the start of a run.
      hashed: bytes verified per second.
      gathered: bytes of features gathered per second from memory.
      latency: seconds that two processes take to add up next to nothing.
    """

    sampling: dict
    decoded: float
    examined: float
    hashed: float
    gathered: float
    latency: float


def all_reduce(weights, workers, bandwidth, latency):
    """Seconds in which a ring of workers adds up their gradients."""
    if workers == 1:
        return 0.0
    return latency + 2 * (workers - 1) / workers * 4 * weights / bandwidth


def parts(case: Case, workers: int, measured: Measured) -> dict[str, float]:
    """Hours by what they are spent on."""
    value = {name: number for name, (number, *_) in ASSUMED.items()}
    machines = -(-workers // MACHINE)
    encoding = start = 0.0
    head = case.features > 0
    if head:
        encoding = max(
            case.encoder * case.examples * case.views
            / (workers * value["encoder"] * value["peak"]),
            case.examples / (measured.decoded * value["cores"] * workers),
        )  # fmt: skip
        start = case.stored_bytes / measured.hashed
    start += case.examples / measured.examined
    share = case.batch / workers
    used = value["encoder"] if head else value["training"]
    compute = 3 * case.forward * case.views * share / (used * value["peak"])
    if head:
        compute += value["passes"] * 4 * case.weights * share / value["memory"]
    network = value["inside"] if machines == 1 else value["outside"]
    reduced = all_reduce(case.weights, workers, network, measured.latency)
    applied = value["applied"] * 4 * case.weights / value["memory"]
    read = case.batch / machines * case.image_bytes / value["disk"]
    if head:
        size = case.batch * case.views * (2 * case.features + 16)
        fits = case.stored_bytes < 0.8 * value["host"]
        speed = measured.gathered if fits else value["disk"]
        read = size / (workers if fits else machines) / speed
    read += measured.sampling[case.examples, case.batch]
    waited = max(0.0, read - compute - reduced - applied)
    seconds = {
        "encoding": encoding,
        "start-up": start,
        "compute": case.updates * compute,
        "all-reduce": case.updates * reduced,
        "apply": case.updates * applied,
        "input": case.updates * waited,
    }
    return {name: number / 3600 for name, number in seconds.items()}


REMEDIES = {
    "encoding": "more machines, each with a shard of `bin/cache.py`",
    "start-up": "data and store are read through once by each process: let fewer "
    "processes share a machine, and start seldom",
    "compute": "more accelerators",
    "all-reduce": "larger batches and fewer updates",
    "apply": "larger batches and fewer updates",
    "input": "more machines, or fewer views, so that the store fits in memory",
}
