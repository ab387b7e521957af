"""Where a run's seed comes from, and what that means for its guarantee.

Whoever knows the seed can subtract the noise. So only a seed that the operating system
drew for one run gives a claim that needs no further word.
"""

from collections.abc import Mapping
from typing import Any

from dpmix_tf.errors import DPMixError
from dpmix_tf.privacy import randomness

_WARNINGS = {
    "system": None,
    "chosen": (
        "No guarantee while the seed is known: it was chosen by the user, and whoever "
        "knows or guesses it can subtract the noise. Leave the seed out (config.seed, "
        "seed=), so that the operating system draws a secret one. What else is said "
        "would hold for a seed that is random, secret and used for this run alone."
    ),
    "shared": (
        "This run shares its seed with other runs of an experiment: publish at most "
        "one of them; two together have no guarantee."
    ),
}


def new_seed(chosen: int | None, shared: int | None = None) -> tuple[int, str]:
    """Returns the seed of a run that starts now, and its origin.

    Args:
      chosen: by the user, to repeat a run; None: not chosen.
      shared: secret, and used by other runs too; None: not shared.

    Returns:
      An int in [0, 2**128), and "chosen", "shared" or "system" (fresh from the
      operating system).

    Raises:
      DPMixError: both are given, or the seed is not an int in [0, 2**128).
    """
    if chosen is not None and shared is not None:
        raise DPMixError(
            "A run with a shared seed was given a chosen one too. Leave config.seed "
            "out, or shared_seed."
        )
    if chosen is not None:
        return randomness.check_seed(chosen), "chosen"
    if shared is not None:
        return randomness.check_seed(shared), "shared"
    return randomness.fresh_seed(), "system"


def saved_seed(metadata: Mapping[str, Any], chosen: int | None) -> tuple[int, str]:
    """Returns a resumed run's seed and its origin, from a checkpoint's metadata."""
    return int(metadata["seed"], 16), saved_origin(metadata, chosen)


def saved_origin(metadata: Mapping[str, Any], chosen: int | None) -> str:
    """Returns the origin in a checkpoint's metadata; older ones leave it to config."""
    return metadata.get("seed_origin") or origin(chosen=chosen is not None)


def origin(*, chosen: bool, shared: bool = False) -> str:
    """Returns "chosen", "shared" or "system"; chosen is the worst of them."""
    return "chosen" if chosen else "shared" if shared else "system"


def warning(origin: str) -> str | None:
    """Returns what has to be said first about a run; None: nothing."""
    return _WARNINGS[origin]
