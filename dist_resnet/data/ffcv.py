"""FFCV, imported with what is mended here seen in version 1.0.2. Import its parts from here only.

- Importing it compiles a numba dictionary of two entries, for three seconds: a plain one serves.
- Importing it sets torch's thread count to 1, and every loader sets it again, from a second thread:
it is left alone.
- Its writer keeps the metadata in shared memory, for processes that we do not use: private memory
leaves nothing behind.
- Its readers are compiled by every process, and for that set a flag on numba's own type of byte
arrays: code that numba has on disk is then not found, or sought for ever. Ours is kept on disk, and
sets none; so are the wrappers of its C functions.
- It compiles our functions again for every loader: now once.
- numba's `workqueue` threads abort the process when two loaders run together: it comes last.
"""

import ctypes
import mmap
from types import SimpleNamespace
from typing import Any
from unittest import mock

import llvmlite.binding
import numba
import numpy as np
import torch
from numba import types
from numba.extending import overload

numba.config.THREADING_LAYER_PRIORITY = ["tbb", "omp", "workqueue"]

_threads = torch.get_num_threads()
with mock.patch("numba.typed.Dict", dict):
    import ffcv.writer
    from ffcv.fields import IntField, RGBImageField
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.rgb_image import (
        IMAGE_MODES,
        SimpleRGBImageDecoder,
        resizer,
    )
    from ffcv.libffcv import ctypes_imdecode, ctypes_resize, resize_crop
    from ffcv.loader import Loader
    from ffcv.loader.epoch_iterator import EpochIterator
    from ffcv.memory_allocator import MemoryAllocator
    from ffcv.memory_managers import OSCacheManager, ProcessCacheManager
    from ffcv.pipeline.allocation_query import AllocationQuery
    from ffcv.pipeline.compiler import Compiler
    from ffcv.pipeline.operation import Operation
    from ffcv.pipeline.state import State
    from ffcv.reader import Reader
    from ffcv.transforms import Squeeze, ToDevice, ToTensor, ToTorchImage
    from ffcv.writer import DatasetWriter, handle_sample
torch.set_num_threads(_threads)


def _set_num_threads(n: int) -> None:
    Compiler.num_threads = n
    numba.set_num_threads(n)


Compiler.set_num_threads = _set_num_threads

_compile = Compiler.compile


def _compile_once(code: Any, signature: Any = None) -> Any:
    compiled = vars(code).setdefault("compiled", {})  # on the function: both are let go together
    key = (signature, Compiler.num_threads > 1)
    if key not in compiled:
        compiled[key] = _compile(code, signature)
    return compiled[key]


Compiler.compile = _compile_once


@numba.njit(cache=True)
def read(address, state):
    """The bytes of a sample's field: of the mapped file, uint8 (bytes,), or of the pages that are
    in memory, uint8 (slots, bytes of a page)."""
    size = state[2][np.searchsorted(state[1], address)]
    return _bytes(state, address, size)


def _bytes(state, address, size):
    """In compiled code alone."""


@overload(_bytes)
def _bytes_of(state, address, size):
    def of_file(state, address, size):
        return state[0][address : address + size]

    def of_pages(state, address, size):
        page_size = np.uint64(state[0].shape[1])
        page, offset = address // page_size, address % page_size
        return state[0][state[3][page], offset : offset + size]

    return of_file if state[0].ndim == 1 else of_pages


for _manager in (OSCacheManager, ProcessCacheManager):
    _manager.compile_reader = lambda self: read

# FFCV's C functions by name, so that code that calls them can be kept on disk
for _name, _function in (("imdecode", ctypes_imdecode), ("resize", ctypes_resize)):
    _at = ctypes.cast(_function, ctypes.c_void_p).value
    llvmlite.binding.add_symbol(f"ffcv_{_name}", _at)
_whole, _part = types.uint64, types.uint32
_imdecode = types.ExternalFunction(
    "ffcv_imdecode", types.int32(types.uintp, _whole, _part, _part, types.uintp, *8 * [_part])
)
_resize = types.ExternalFunction("ffcv_resize", types.void(*11 * [types.int64]))


@numba.njit(nogil=True, cache=True)
def imdecode(content, image):
    """Decode a JPEG, uint8 (bytes,), into an image of its size, uint8 (H, W, 3)."""
    h, w = image.shape[:2]
    at, to = content.ctypes.data, image.ctypes.data
    _imdecode(at, content.size, h, w, to, h, w, 0, 0, 1, 1, 0, 0)


@numba.njit(nogil=True, cache=True)
def resize(image, top, left, h, w, out):
    """A crop of an image, uint8 (H, W, 3), resized by OpenCV to out, uint8 (h', w', 3)."""
    at, to = image.ctypes.data, out.ctypes.data
    rows, columns = image.shape[:2]
    _resize(0, at, rows, columns, top, top + h, left, left + w, to, out.shape[0], out.shape[1])


class _PrivateMemory(mmap.mmap):
    """What the writer asks of multiprocessing's SharedMemory."""

    def __new__(cls, create: bool, size: int) -> "_PrivateMemory":
        return super().__new__(cls, -1, size)

    @property
    def buf(self) -> "_PrivateMemory":
        return self


ffcv.writer.shared_memory = SimpleNamespace(SharedMemory=_PrivateMemory)

__all__ = [
    "IMAGE_MODES",
    "AllocationQuery",
    "Compiler",
    "DatasetWriter",
    "EpochIterator",
    "IntDecoder",
    "IntField",
    "Loader",
    "MemoryAllocator",
    "Operation",
    "RGBImageField",
    "Reader",
    "SimpleRGBImageDecoder",
    "Squeeze",
    "State",
    "ToDevice",
    "ToTensor",
    "ToTorchImage",
    "handle_sample",
    "imdecode",
    "read",
    "resize",
    "resize_crop",
    "resizer",
]
