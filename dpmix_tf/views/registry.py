"""Builds makers of views from configs and saved models."""

from collections.abc import Mapping
from typing import Any

from dpmix_tf.errors import DPMixError
from dpmix_tf.synthetic import SyntheticPool
from dpmix_tf.views.base import Views
from dpmix_tf.views.maker import ViewMaker
from dpmix_tf.views.naive import NaiveMixup

_KINDS: dict[str, type[ViewMaker] | type[NaiveMixup]] = {
    kind.kind: kind for kind in (ViewMaker, NaiveMixup)
}


def kind_of(settings: Mapping[str, Any]) -> type[ViewMaker] | type[NaiveMixup]:
    """Returns the class that `config.views` selects; it determines the sensitivity."""
    return ViewMaker if settings["microbatch"] is None else NaiveMixup


def count_views(settings: Mapping[str, Any]) -> int:
    """Returns K of the maker that `config.views` describes; needs no pool."""
    if kind_of(settings) is NaiveMixup:
        return NaiveMixup.views_per_example
    counts = {name: settings[name] for name in ("base", "mixed", "synthetic")}
    return ViewMaker.count(**counts, only_mixed=settings["only_mixed"])


def make_views(settings: Mapping[str, Any], pool: SyntheticPool | None = None) -> Views:
    """Makes the view maker that `config.views` describes.

    Args:
      settings: the fields of ViewMaker, and `microbatch`: None, or m for NaiveMixup.
      pool: the pool of synthetic images, if the settings require one.

    Raises:
      DPMixError: the settings make no views, or contradict each other.
    """
    kind, settings = kind_of(settings), dict(settings)
    microbatch = settings.pop("microbatch")
    if kind is ViewMaker:
        return ViewMaker(**settings, pool=pool)
    plain = ViewMaker()
    for name in settings:
        if name in ("alpha", "augment", "padding"):
            continue
        if settings[name] != getattr(plain, name):
            raise DPMixError(
                f"views.microbatch={microbatch} asks for naive mixup, which makes its "
                f"own views: set views.{name}={getattr(plain, name)}; received: "
                f"{settings[name]}."
            )
    return NaiveMixup(
        microbatch=microbatch,
        **{name: settings[name] for name in ("alpha", "augment", "padding")},
    )


def from_dict(values: Mapping[str, Any]) -> Views:
    """Makes the maker of views that a `to_dict` described.

    Raises:
      DPMixError: the kind is unknown, or the pool is missing or has changed.
    """
    values = dict(values)
    kind = values.pop("kind", None)
    if kind not in _KINDS:
        raise DPMixError(
            f"The saved views are of kind {kind!r}; expected one of "
            f"{', '.join(_KINDS)}."
        )
    return _KINDS[kind].from_dict(values)
