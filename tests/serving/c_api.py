"""Runs a SavedModel through TensorFlow's C API, as TensorFlow Serving loads it."""

import ctypes
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2

_LIBRARY = Path(tf.__file__).parent / "libtensorflow_cc.so.2"


class _Buffer(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("length", ctypes.c_size_t),
        ("deallocator", ctypes.c_void_p),
    ]


class _Output(ctypes.Structure):
    _fields_ = [("operation", ctypes.c_void_p), ("index", ctypes.c_int)]


_STRING_BYTES = 24  # sizeof(TF_TString)


class CModel:
    """TF_LoadSessionFromSavedModel and TF_SessionRun.

    Args:
      folder: of one version.
    """

    def __init__(self, folder):
        self._c = c = ctypes.CDLL(str(_LIBRARY))
        for function in (
            c.TF_NewStatus,
            c.TF_NewGraph,
            c.TF_NewSessionOptions,
            c.TF_LoadSessionFromSavedModel,
            c.TF_GraphOperationByName,
            c.TF_AllocateTensor,
            c.TF_TensorData,
            c.TF_StringGetDataPointer,
        ):
            function.restype = ctypes.c_void_p
        c.TF_Message.restype = ctypes.c_char_p
        c.TF_Dim.restype = ctypes.c_int64
        c.TF_TensorByteSize.restype = c.TF_StringGetSize.restype = ctypes.c_size_t
        self._status = ctypes.c_void_p(c.TF_NewStatus())
        self._graph = ctypes.c_void_p(c.TF_NewGraph())
        c.TF_NewBuffer.restype = ctypes.POINTER(_Buffer)
        buffer = c.TF_NewBuffer()
        tags = (ctypes.c_char_p * 1)(b"serve")
        self._session = ctypes.c_void_p(
            c.TF_LoadSessionFromSavedModel(
                ctypes.c_void_p(c.TF_NewSessionOptions()),
                None,
                str(folder).encode(),
                tags,
                1,
                self._graph,
                buffer,
                self._status,
            )
        )
        self._check()
        text = ctypes.string_at(buffer.contents.data, buffer.contents.length)
        meta_graph = meta_graph_pb2.MetaGraphDef.FromString(text)
        self.signatures = meta_graph.signature_def

    def _check(self):
        if self._c.TF_GetCode(self._status):
            raise RuntimeError(self._c.TF_Message(self._status).decode())

    def _output(self, name):
        operation, _, index = name.partition(":")
        found = self._c.TF_GraphOperationByName(self._graph, operation.encode())
        assert found, name
        return _Output(found, int(index or 0))

    def run(self, signature, **inputs):
        """Output name -> array."""
        c, definition = self._c, self.signatures[signature]
        assert set(inputs) == set(definition.inputs)
        names = sorted(definition.outputs)
        fed = [self._output(definition.inputs[name].name) for name in inputs]
        fetched = [self._output(definition.outputs[name].name) for name in names]
        values = [self._tensor(value) for value in inputs.values()]
        results = (ctypes.c_void_p * len(names))()
        c.TF_SessionRun(
            self._session,
            None,
            (_Output * len(fed))(*fed),
            (ctypes.c_void_p * len(values))(*values),
            len(fed),
            (_Output * len(fetched))(*fetched),
            results,
            len(fetched),
            None,
            0,
            None,
            self._status,
        )
        self._check()
        return {
            name: self._array(ctypes.c_void_p(result))
            for name, result in zip(names, results, strict=True)
        }

    def _tensor(self, array):
        array = np.asarray(array)
        dims = (ctypes.c_int64 * array.ndim)(*array.shape)
        strings = array.dtype.kind in "SO"
        dtype = tf.string if strings else tf.as_dtype(array.dtype)
        size = array.size * (_STRING_BYTES if strings else array.itemsize)
        tensor = self._c.TF_AllocateTensor(
            dtype.as_datatype_enum, dims, array.ndim, ctypes.c_size_t(size)
        )
        data = self._c.TF_TensorData(ctypes.c_void_p(tensor))
        if not strings:
            ctypes.memmove(data, np.ascontiguousarray(array).tobytes(), size)
            return tensor
        for index, text in enumerate(array.ravel()):
            where = ctypes.c_void_p(data + index * _STRING_BYTES)
            self._c.TF_StringInit(where)
            self._c.TF_StringCopy(where, bytes(text), ctypes.c_size_t(len(text)))
        return tensor

    def _array(self, tensor):
        c = self._c
        shape = [c.TF_Dim(tensor, axis) for axis in range(c.TF_NumDims(tensor))]
        dtype = tf.as_dtype(c.TF_TensorType(tensor))
        data = c.TF_TensorData(tensor)
        if dtype != tf.string:
            text = ctypes.string_at(data, c.TF_TensorByteSize(tensor))
            return np.frombuffer(text, dtype.as_numpy_dtype).reshape(shape)
        strings = []
        for index in range(int(np.prod(shape))):
            where = ctypes.c_void_p(data + index * _STRING_BYTES)
            pointer = c.TF_StringGetDataPointer(where)
            strings.append(ctypes.string_at(pointer, c.TF_StringGetSize(where)))
        return np.array(strings, object).reshape(shape)
