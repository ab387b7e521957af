"""Settings that need no tuning, each by a rule with its source.

Tuning on private data costs privacy, which is easily left out of the account. These
rules look at no data: only at the number of examples, epsilon, the network, the images'
size and the time. docs/suggest.md has what they reach beside tuned settings.

The rate of a linear head decides most. The noise of T updates leaves in each weight a
standard deviation of

  s = rate sqrt(T) sigma C / (B (1 - momentum)) = rate T C / (N mu (1 - momentum)),
  mu = q sqrt(T) / sigma,

which moves the logits of an image, whose features have length F, by s F. The best rates
in the reports have s F near 1, at every epsilon. mu is what the noise leaves of what is
learned, whatever the batch size and the number of updates (Sander, Stock and
Sablayrolles 2023, TAN). It is nearly linear in epsilon, and so is the rate (Panda et
al. 2024).
"""

import dataclasses
import json
import math
from typing import Any

from dpmix_tf.errors import DPMixError
from dpmix_tf.privacy import PrivacyPlan
from dpmix_tf.privacy.plan import check_number

_LOGIT_NOISE = 1.0  # s F
_MOMENTUM = 0.9  # of heads on scattering features
_FEATURES = {"scattering": 10.0, "pretrained": math.sqrt(1280)}  # F

# Views per second on two cores, of square images with so many pixels a side, from
# docs/benchmarks/step.md, features.md and encoded.md.
_SPEEDS = {
    "convnet": (3_890.0, 32),  # 544 views in 0.1398 s
    "wide_resnet": (124.0, 32),  # 544 views in 4.373 s
    "scattering": (344.0, 32),
    "pretrained": (566.0, 112),  # 34,000 views in 60.0 s
}
NETWORKS = tuple(_SPEEDS)
# Numbers of views, (base, mixed), of which the first that the time allows is taken.
_VIEWS = {
    "convnet": ((16, 18), (16, 0), (4, 0), (1, 0)),
    "wide_resnet": ((16, 18), (16, 0), (4, 0), (1, 0)),
    "scattering": ((1, 0),),
    "pretrained": ((8, 0), (1, 0)),
}
# Updates of a whole training, and the share of the examples in a batch.
_SCHEDULES = {
    "convnet": (100, 0.18, "as configs/digits.py"),
    "wide_resnet": (2_400, 0.08, "as published (Bao et al. 2023)"),
    "scattering": (240, 0.16, "as configs/cifar10_scattering.py"),
    "pretrained": (60, 0.25, "as configs/cifar10_encoder.py"),
}
_SIZED = ("image_folder", "table", "caltech256")  # resized as the config says
_FEWEST = 4  # a training may be cut to a fourth of its updates, and no further


@dataclasses.dataclass(frozen=True)
class Choice:
    """One setting.

    Attributes:
      field: of a run's config, dotted.
      value: what it is set to.
      reason: in one line.
    """

    field: str
    value: Any
    reason: str


def largest_delta(num_examples: int) -> float:
    """Returns the largest power of ten at or below 1 / (10 N).

    In the worst reading of delta each record is published with that probability: then
    none of all N is, with a probability of nine in ten or more.
    """
    exponent = math.floor(-math.log10(10 * num_examples) + 1e-9)
    return float(f"1e{exponent}")


def suggest(
    *,
    num_examples: int,
    epsilon: float,
    network: str,
    minutes: float,
    delta: float | None = None,
    image_size: int = 32,
    views_per_second: float | None = None,
) -> list[Choice]:
    """Returns the settings of a run, each with its reason.

    Args:
      num_examples: number of private training examples, N.
      epsilon: the budget, above 0.
      network: one of NETWORKS.
      minutes: for training; the test afterwards takes its own time.
      delta: in (0, 1); default: see largest_delta.
      image_size: pixels a side.
      views_per_second: of this network at this size on your machine; default: what was
        measured on two cores, in proportion to the pixels.

    Raises:
      DPMixError: a value is out of range, or the time is too short.
    """
    if network not in NETWORKS:
        raise DPMixError(
            f"--network must be one of {', '.join(NETWORKS)}; received: {network!r}."
        )
    check_number("num_examples", num_examples, at_least=1)
    check_number("minutes", minutes, above=0.0)
    check_number("image_size", image_size, at_least=4)
    speed, of_speed = _speed(network, image_size, views_per_second)
    updates, share, schedule = _SCHEDULES[network]
    batch = max(1, round(share * num_examples))
    base, mixed, planned = _what_time_allows(
        network, num_examples, batch, updates, 60 * minutes * speed, minutes
    )
    chosen_delta = largest_delta(num_examples) if delta is None else delta
    plan = PrivacyPlan.for_epsilon(
        epsilon=epsilon,
        delta=chosen_delta,
        num_examples=num_examples,
        expected_batch_size=batch,
        updates=planned,
    )
    fewer = f"; {updates} are too many for {minutes:g} minutes"
    return [
        *_network(network, image_size),
        *_views(network, image_size, base, mixed, f"{of_speed}, {minutes:g} minutes"),
        Choice("privacy.epsilon", float(epsilon), "given"),
        Choice(
            "privacy.delta",
            chosen_delta,
            "the largest power of ten at or below 1 / (10 N)"
            if delta is None
            else "given",
        ),
        Choice(
            "privacy.expected_batch_size",
            batch,
            f"{share:.0%} of the examples, {schedule}: the larger a batch, the less "
            "noise in its mean",
        ),
        Choice(
            "privacy.updates",
            planned,
            schedule + (fewer if planned < updates else ""),
        ),
        *_clipping(network),
        *_optimizer(network, plan),
        Choice("data.validation_fraction", 0.0, "nothing is tuned: all examples train"),
        Choice("run.evaluate_every", planned, "at the end"),
    ]


def _speed(network: str, image_size: int, given: float | None) -> tuple[float, str]:
    """Views per second, and in words."""
    if given is not None:
        check_number("views_per_second", given, above=0.0)
        return given, f"at the given {given:g} views per second"
    speed, measured_at = _SPEEDS[network]
    if network != "pretrained":  # which resizes
        speed *= (measured_at / image_size) ** 2
    return speed, f"at {speed:,.0f} views per second, as on two cores"


def _what_time_allows(
    network: str,
    num_examples: int,
    batch: int,
    updates: int,
    affordable: float,
    minutes: float,
) -> tuple[int, int, int]:
    """Numbers of base and mixed views, and of updates, for so many views in all."""
    # Frozen features are computed once; their head's updates take a second or less.
    once = network in _FEATURES
    examples = num_examples if once else batch * updates
    for base, mixed in _VIEWS[network]:
        if examples * (base + mixed) <= affordable:
            return base, mixed, updates
    fewest = 1 if once else _FEWEST
    if examples / fewest > affordable:
        needed = minutes * examples / fewest / affordable
        raise DPMixError(
            f"{minutes:g} minutes are too few to train {network!r} on {num_examples} "
            f"examples: it takes {math.ceil(10 * needed) / 10:g} minutes at least. "
            "Give more minutes, another --network, or the --views_per_second that you "
            "have measured."
        )
    return 1, 0, updates if once else int(affordable / batch)


def _network(network: str, image_size: int) -> list[Choice]:
    small = image_size <= 16
    settings: dict[str, dict[str, Any]] = {
        "convnet": {"widths": (32, 64) if small else (16, 32, 64), "groups": 8},
        "wide_resnet": {"depth": 16, "width": 4, "order": "shortcut_norm_first"},
        "scattering": {
            "features": "scattering+patches",
            "filters": 256,
            "head": "linear",
        },
        "pretrained": {"encoder": "efficientnet_lite0", "image_size": 112},
    }
    reason = {
        "convnet": "as the shipped configurations for images of this size",
        "wide_resnet": "the best order in the published re-run (R+R, ACSAC 2024)",
        "scattering": "the best features that need no data (docs/results.md)",
        "pretrained": "public weights that install; 112 pixels are fast",
    }[network]
    return [Choice("network", {"name": network} | settings[network], reason)]


def _views(
    network: str, image_size: int, base: int, mixed: int, time: str
) -> list[Choice]:
    once = network in _FEATURES
    augment, why = "crop_flip", "crops and mirror images"
    if base == 1:
        augment, why = "none", "a single view: the image itself"
    elif image_size <= 16:
        augment, why = "affine", "crops by whole pixels are coarse on small images"
    fixed = [Choice("views.visits", 1, "features are computed once")] if once else []
    return [
        Choice("views.base", base, f"as many as fit: {time}"),
        Choice("views.mixed", mixed, "of DP-Mix, where there is time for them"),
        Choice("views.augment", augment, why),
        *fixed,
    ]


def _clipping(network: str) -> list[Choice]:
    automatic = network in ("convnet", "pretrained")
    return [
        Choice(
            "privacy.clipping",
            "automatic" if automatic else "fixed",
            "no clip norm to tune (Bu et al. 2022)"
            if automatic
            else "clip norm 1, below most gradients of this network",
        ),
        Choice("privacy.clip_norm", 1.0, "a rate goes with it, so one is enough"),
    ]


def _optimizer(network: str, plan: PrivacyPlan) -> list[Choice]:
    settings: dict[str, Any] = {"name": "SGD"}
    if network in _FEATURES:
        momentum = _MOMENTUM if network == "scattering" else 0.0
        rate = linear_rate(plan, features=_FEATURES[network], momentum=momentum)
        if momentum:
            settings["momentum"] = momentum
        why = "noise moves a logit by about 1 in the end; nearly linear in epsilon"
    elif network == "convnet":
        rate, why = 1.0, "the best or nearly so at every epsilon in docs/digits_arms"
    else:
        rate = 2 * plan.epsilon() ** (1 / 3)
        why = "through the published 2 at epsilon 1 and 4 at epsilon 8"
    settings["learning_rate"] = float(f"{rate:.2g}")
    return [Choice("optimizer", settings, why)]


def linear_rate(plan: PrivacyPlan, *, features: float, momentum: float) -> float:
    """Returns the learning rate of a linear head that starts at zero.

    Args:
      plan: its clip norm, noise, sampling and updates count.
      features: their length F, after the network's own scaling.
      momentum: of SGD, in [0, 1).

    Returns:
      The rate at which the noise of all updates moves a logit by a standard deviation
      of one, see the module's description.
    """
    mu = plan.sampling_probability * math.sqrt(plan.updates) / plan.noise_multiplier
    unit = plan.num_examples * mu / (plan.updates * plan.clip_norm)
    return _LOGIT_NOISE * (1 - momentum) * unit / features


def to_text(choices: list[Choice]) -> str:
    """Returns the choices as lines, each with its reason below it."""
    return "\n".join(
        f"{choice.field} = {_shown(choice.value)}\n    {choice.reason}"
        for choice in choices
    )


def _shown(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    return ", ".join(f"{name}={each}" for name, each in value.items())


def to_config_file(
    choices: list[Choice], *, data: str, image_size: int, command: str
) -> str:
    """Returns the text of a config file that makes these choices.

    Args:
      choices: of `suggest`.
      data: name of the data set, see dpmix_tf.data.DATASETS.
      image_size: pixels a side, to which folders and tables of images are resized.
      command: by which it was made, for the file's description; one line without
        quotation marks and backslashes.
    """
    network = next(each.value for each in choices if each.field == "network")
    pretrained = ", pretrained_network" if network["name"] == "pretrained" else ""
    lines = [
        '"""Suggested settings.',
        "",
        f"  {command}",
        "",
        "Each follows from a rule that looks at no data, see docs/suggest.md.",
        '"""',
        "",
        f"from dpmix_tf.training import default_config{pretrained}",
        "",
        "",
        "def get_config():",
        '    """Returns the run\'s configuration."""',
        "    config = default_config()",
        f"    config.data.name = {_code(data)}",
    ]
    if data in _SIZED:
        lines.append(f"    config.data.image_size = {image_size}")
    for choice in choices:
        lines += [f"    # {choice.reason}", *_assignments(choice)]
    return "\n".join([*lines, "    return config", ""])


def _assignments(choice: Choice) -> list[str]:
    if not isinstance(choice.value, dict):
        return [f"    config.{choice.field} = {_code(choice.value)}"]
    settings, lines = dict(choice.value), []
    if "encoder" in settings:
        encoder = _code(settings.pop("encoder"))
        lines.append(f"    config.network = pretrained_network({encoder})")
        del settings["name"]
    lines.append(f"    config.{choice.field}.update(")
    lines += [f"        {name}={_code(value)}," for name, value in settings.items()]
    return [*lines, "    )"]


def _code(value: Any) -> str:
    """A value as Python code, strings in double quotes."""
    return json.dumps(value) if isinstance(value, str) else repr(value)
