r"""Encodes a config's fixed views ahead of training; looks after what is encoded.

  python bin/cache.py --config=configs/own_encoder.py --config.views.visits=2 \
      --config.network.encoder=encoder.keras --cache_dir=cache
  python bin/cache.py --cache_dir=cache --list
  python bin/cache.py --cache_dir=cache --verify
  python bin/cache.py --cache_dir=cache --delete=0123456789abcdef

Training encodes what it does not find; this command does so beforehand, for any number
of runs, and with --shard=i/n on several machines. Train with --config.run.cache_dir set
to the same folder; with --workdir instead of --cache_dir, views are encoded into the
folder where a training run with that --workdir looks for them.

If interrupted, rerun the same command: it encodes only what is missing. For shards on
machines that share no disk, merge their folders at the end; no file is in two of them
with another content.

The cache is private, like the images: only its owner can read it.
"""

import sys
from pathlib import Path

from absl import flags

from dpmix_tf.cli import common
from dpmix_tf.cli.startup import start_tensorflow
from dpmix_tf.errors import DPMixError
from dpmix_tf.files import local_path

_CONFIG = common.define_config()
_CACHE_DIR = flags.DEFINE_string(
    "cache_dir", None, "Folder of encoded views, as for --config.run.cache_dir."
)
_WORKDIR = common.define_workdir(
    "Instead of --cache_dir: the --workdir of a training run, whose cache/ is meant."
)
_SHARD = flags.DEFINE_string(
    "shard", "1/1", "Part of the views to encode here: i/n, the i-th of n parts."
)
_LIST = flags.DEFINE_bool("list", False, "List what the folder holds.")
_VERIFY = flags.DEFINE_bool(
    "verify", False, "Read everything and compare checksums; nothing is changed."
)
_DELETE = flags.DEFINE_string(
    "delete", None, "Delete the views of this key, as --list shows it, or of all."
)


def _main(argv: list[str]) -> None:
    asked = [_CONFIG.value is not None, _LIST.value, _VERIFY.value, bool(_DELETE.value)]
    if sum(asked) != 1:
        raise DPMixError(
            "Give one of --config (to encode), --list, --verify and --delete. See "
            "--help."
        )
    folder, shard = _folder(), common.parse_shard(_SHARD.value)
    start_tensorflow()
    if _CONFIG.value is not None:
        _encode(folder, shard)
    elif _DELETE.value:
        _delete(folder, _DELETE.value)
    else:
        _show(folder, verify=_VERIFY.value)


def _folder() -> Path:
    """The cache folder that the flags name, in exactly one way."""
    given = {"--cache_dir": _CACHE_DIR.value, "--workdir": _WORKDIR.value}
    if _CONFIG.value is not None:
        if "run" not in _CONFIG.value:
            raise DPMixError(
                "--config describes an experiment, whose runs share a cache of their "
                "own. Expected the configuration of a run, such as configs/digits.py."
            )
        given["--config.run.cache_dir"] = _CONFIG.value.run.cache_dir
    named = {name: value for name, value in given.items() if value is not None}
    if len(named) != 1:
        raise DPMixError(
            f"Give exactly one of {', '.join(given)}; received: "
            f"{', '.join(named) or 'none'}."
        )
    ((name, value),) = named.items()
    path = local_path(value, name)
    return path / "cache" if name == "--workdir" else path


def _encode(folder: Path, shard: tuple[int, int]) -> None:
    from dpmix_tf.training.ahead import encode_ahead

    stores = encode_ahead(_CONFIG.value, folder, shard=shard)
    for part, store in stores.items():
        print(f"{part + ':':<12}{_size(store)} in {store.folder}; {_blocks(store)}")
    if all(_whole(store) for store in stores.values()):
        use = "--workdir" if _WORKDIR.value else f"--config.run.cache_dir={folder}"
        print(f"Train with the same settings and {use}.")
    else:
        print("Training needs the other shards too; it encodes what is missing.")


def _show(folder: Path, *, verify: bool) -> None:
    """Lists the stores; exits with status 1 if anything is found damaged."""
    from dpmix_tf.views.store import FeatureStore, store_folders

    total, broken = 0, False
    for path in store_folders(folder):
        try:
            store = FeatureStore.opened(path)
        except DPMixError as error:
            print(f"{path.name}  damaged: {error}")
            broken = True
            continue
        total += store.layout.bytes
        line = f"{path.name}  {_size(store)}; {_about(store)}; {_blocks(store)}"
        damaged = store.damaged() if verify else []
        if damaged:
            broken = True
            line += f", {len(damaged)} damaged (encoded again when they are needed)"
        print(line + (", verified" if verify and not damaged else ""))
    print(f"{_megabytes(total)} when complete, in {folder}")
    if broken:
        sys.exit(1)


def _delete(folder: Path, which: str) -> None:
    from dpmix_tf.views.store import delete_store, store_folders

    found = {path.name: path for path in store_folders(folder)}
    if which != "all" and which not in found:
        raise DPMixError(
            f"{folder} holds no encoded views of the key {which!r}. Its keys: "
            f"{', '.join(found) or 'none'}."
        )
    for path in found.values() if which == "all" else [found[which]]:
        delete_store(path)
        print(f"Deleted {path}")


def _size(store) -> str:
    layout = store.layout
    visits, count = layout.views
    return (
        f"{layout.rows:,} examples, visits {visits}, views {count}, features "
        f"{'x'.join(map(str, layout.features))} {layout.dtype}, "
        f"{_megabytes(layout.bytes)}"
    )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _about(store) -> str:
    """How its views differ from single, unchanged images."""
    from dpmix_tf.views import ViewMaker

    plain = vars(ViewMaker(visits=1))
    made = store.key.get("views", {})
    changed = {k: v for k, v in made.items() if k not in plain or plain[k] != v}
    changed.pop("visits", None)
    words = ", ".join(f"{name} = {value}" for name, value in changed.items())
    return words or "plain images"


def _blocks(store) -> str:
    return f"{len(store.present())} of {store.layout.blocks} blocks"


def _whole(store) -> bool:
    return len(store.present()) == store.layout.blocks


def main() -> None:
    """Entry point."""
    common.run(_main, sys.modules[__name__])
