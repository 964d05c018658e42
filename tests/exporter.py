"""A producer of DLPack in ctypes, which shows what a consumer does to its memory."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

CODES = {"i": 0, "u": 1, "f": 2, "V": 4, "c": 5, "b": 6}  # of NumPy's kinds; V: bfloat16
READ_ONLY, IS_COPIED = 1, 2
LEGACY, VERSIONED = b"dltensor", b"dltensor_versioned"  # a capsule keeps no copy of its name
MOST_AXES = 33  # one too many

_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_Destructor = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_api = ctypes.pythonapi
_new = _api.PyCapsule_New
_new.restype, _new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, _Destructor]
_is_valid = _api.PyCapsule_IsValid
_is_valid.restype, _is_valid.argtypes = ctypes.c_int, [ctypes.c_void_p, ctypes.c_char_p]
_pointer = _api.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_char_p]


class Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class Legacy(ctypes.Structure):
    _fields_ = [("tensor", Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter)]


class Versioned(ctypes.Structure):
    _fields_ = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", _Deleter),
        ("flags", ctypes.c_uint64),
        ("tensor", Tensor),
    ]


class Exporter:
    """Exports the array in blocks of memory that are good until their deleter is called.

    The deleter writes the block back into the array, and fills it with NaN. So a consumer that
    calls it early reads NaN, and what it writes is lost.

    `change` may change the struct of a tensor; `flags`, `version` and `device` are those of DLPack.
    """

    def __init__(
        self,
        array: Any,
        change: Callable[[Any], object] = lambda tensor: None,
        *,
        legacy: bool = False,
        flags: int = 0,
        version: tuple[int, int] = (1, 1),
        device: Any = (1, 0),
        has_deleter: bool = True,
    ) -> None:
        self.array, self.dtype = array, array.dtype
        self.change, self.legacy, self.flags, self.version = change, legacy, flags, version
        self.device, self.has_deleter = device, has_deleter
        self.made = self.deleted = 0
        self._live: dict[int, Any] = {}
        self._dead: list[Any] = []  # so that a late read or write is not one of freed memory
        self._deleter = _Deleter(self._delete)

    def __dlpack_device__(self) -> Any:
        return self.device

    def __dlpack__(self, *, max_version: tuple[int, int] | None = None) -> Any:
        assert max_version is None or max_version[0] == 1
        return self.capsule()

    def capsule(self) -> Any:
        block = self.array.copy()
        managed: Any = Legacy() if self.legacy else Versioned(*self.version, flags=self.flags)
        if self.has_deleter:
            managed.deleter = self._deleter
        tensor, axes = managed.tensor, ctypes.c_int64 * MOST_AXES
        tensor.data, tensor.device, tensor.ndim = block.ctypes.data, 1, block.ndim
        tensor.code, tensor.bits, tensor.lanes = CODES[block.dtype.kind], block.itemsize * 8, 1
        tensor.shape = axes(*block.shape, *[1] * (MOST_AXES - block.ndim))
        tensor.strides = axes(*(stride // block.itemsize for stride in block.strides))
        if block.size == 0:
            tensor.data = None
        self.change(tensor)
        address = ctypes.addressof(managed)
        self._live[address] = managed, block
        self.made += 1
        return _new(address, LEGACY if self.legacy else VERSIONED, _drop)

    def _delete(self, address: int) -> None:
        managed, block = self._live.pop(address)  # an error if it is called twice
        self.deleted += 1
        self.array[...] = block
        ctypes.memset(block.ctypes.data, 0xFF, block.nbytes)
        self._dead = [*self._dead[-9:], (managed, block)]


def _drop_unused(capsule: int) -> None:
    """Delete what no consumer has taken out of the capsule."""
    for name, kind in ((LEGACY, Legacy), (VERSIONED, Versioned)):
        if _is_valid(capsule, name):
            managed: Any = kind.from_address(_pointer(capsule, name) or 0)
            managed.deleter(ctypes.addressof(managed))


_drop = _Destructor(_drop_unused)


class OldExporter(Exporter):
    """A producer that does not know `max_version`."""

    def __init__(self, array: Any) -> None:
        super().__init__(array, legacy=True)

    def __dlpack__(self) -> Any:  # type: ignore[override]
        return self.capsule()
