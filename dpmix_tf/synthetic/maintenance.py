"""Repairing damaged pools, and merging pools that come in parts."""

import functools
import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from dpmix_tf.errors import DPMixError
from dpmix_tf.files import local_path, write_atomic, write_text_atomic
from dpmix_tf.synthetic.pool import MANIFEST, PoolWriter, decode, read_manifest


def repair(folder: str | Path) -> list[str]:
    """Removes broken files and rewrites the manifest for what is left.

    Args:
      folder: the pool.

    Returns:
      The names of the removed files; generate again to replace them.
    """
    folder = local_path(folder, "pool.path")
    manifest = read_manifest(folder)
    digests = {entry["file"]: entry["sha256"] for entry in manifest["images"]}
    removed = []
    for path in sorted(folder.glob("*/*")):
        name = f"{path.parent.name}/{path.name}"
        try:
            data = path.read_bytes()
            decode(data, path, manifest["image_shape"])
            if digests.get(name, "") in ("", hashlib.sha256(data).hexdigest()):
                continue
        except DPMixError:
            pass
        path.unlink()
        removed.append(name)
    kept = [e for e in manifest["images"] if (folder / e["file"]).exists()]
    write_text_atomic(
        folder / MANIFEST, json.dumps({**manifest, "images": kept}, indent=1) + "\n"
    )
    return removed


def merge(folders: Sequence[str | Path], output: str | Path) -> None:
    """Merges pools with the same classes and size, such as the shards of one.

    Args:
      folders: the pools; an image in several of them must be the same in each.
      output: the merged pool; may be new or one of `folders`.

    Raises:
      DPMixError: classes, sizes or generators differ, or two images clash.
    """
    paths = [local_path(folder, "A pool to merge") for folder in folders]
    first = read_manifest(paths[0])
    writer = PoolWriter(
        output,
        class_names=first["class_names"],
        image_shape=first["image_shape"],
        generator=first["generator"],
    )
    for folder in paths:
        manifest = read_manifest(folder)
        for key in ("class_names", "image_shape", "generator"):
            if manifest[key] != first[key]:
                raise DPMixError(
                    f"{folder} and {paths[0]} cannot be merged: {key} is "
                    f"{manifest[key]} and {first[key]}."
                )
        for path in sorted(folder.glob("*/*.png")):
            target = writer.folder / path.parent.name / path.name
            if target.exists():
                if target.read_bytes() != path.read_bytes():
                    raise DPMixError(f"{path} and {target} differ: pools clash.")
                continue
            with open(path, "rb") as source:
                write_atomic(target, functools.partial(shutil.copyfileobj, source))
    writer.finish()
