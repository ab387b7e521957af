"""Reads the weights in a PyTorch file of the older format, without PyTorch."""

import io
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from dpmix_tf.errors import DPMixError

_MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001
_LARGEST = 2**31  # bytes of one tensor; beyond, the file is not an encoder's

# The only names that a file of tensors needs. Whatever else it asks for is refused:
# unpickling would run it.
_STORAGES = {"FloatStorage": np.float32, "LongStorage": np.int64}


class _Storage:
    """The memory of one or more tensors, which the file holds after the tensors."""

    def __init__(self, kind: type[np.generic], length: int):
        if not 0 <= length * np.dtype(kind).itemsize < _LARGEST:
            raise ValueError(f"a storage of {length} numbers")
        self.values = np.zeros(length, kind)


def _rebuild(storage, offset, size, stride, *_) -> np.ndarray:
    """The view of a storage that a tensor is."""
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    inside = offset >= 0 and last < len(storage.values)
    if 0 in size or min((0, *stride)) < 0 or not inside:
        raise ValueError(f"a tensor of shape {size} outside its storage")
    width = storage.values.itemsize
    steps = tuple(step * width for step in stride)
    return np.lib.stride_tricks.as_strided(storage.values[offset:], size, steps)


class _Unpickler(pickle.Unpickler):
    """Knows dictionaries, tensors and their storages, and nothing else."""

    def __init__(self, file: io.BufferedIOBase):
        super().__init__(file)
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module, name):
        """Returns what a name stands for."""
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, pid):
        """Returns a storage, empty as yet."""
        kind, dtype, key, _, length, _ = pid
        if kind != "storage" or dtype not in _STORAGES.values():
            raise pickle.UnpicklingError(f"it refers to {pid!r}")
        return self.storages.setdefault(key, _Storage(dtype, length))


def read_torch_file(path: str | Path) -> dict[str, np.ndarray]:
    """Reads a state dictionary that `torch.save` wrote before PyTorch 1.6.

    Args:
      path: the file; it may come from anybody.

    Returns:
      name -> float32 or int64 array, of the tensor's shape.

    Raises:
      DPMixError: the file does not exist, is damaged, or holds anything but tensors.
    """
    try:
        with open(path, "rb") as file:
            for expected in (_MAGIC, _VERSION):
                if _Unpickler(file).load() != expected:
                    raise ValueError("its first bytes are others")
            about: Any = _Unpickler(file).load()
            if not about["little_endian"]:
                raise ValueError("its numbers are big-endian")
            unpickler = _Unpickler(file)
            tensors = unpickler.load()
            for key in _Unpickler(file).load():
                values = unpickler.storages[key].values
                if int.from_bytes(file.read(8), "little") != len(values):
                    raise ValueError("a storage has another length")
                content = file.read(values.nbytes)
                values[:] = np.frombuffer(content, values.dtype)
            if not all(isinstance(t, np.ndarray) for t in tensors.values()):
                raise ValueError("it holds something else than tensors")
            return dict(tensors)
    except Exception as error:  # a damaged pickle may raise anything
        raise DPMixError(
            f"{path} does not hold weights in PyTorch's older format: {error}. Give "
            "the file as it was published."
        ) from error
