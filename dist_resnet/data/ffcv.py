"""FFCV, imported with what is mended here seen in version 1.0.2. Import its parts from here only.

- Importing it compiles a numba dictionary of two entries, for three seconds: a plain one serves.
- Importing it sets torch's thread count to 1, and every loader sets it again, from a second thread:
it is left alone.
- Its writer keeps the metadata in shared memory, for processes that we do not use: private memory
leaves nothing behind.
- Its reader of a mapped file is compiled by every process, and for that sets a flag on numba's own
type of byte arrays: code that numba has on disk is then not found, or sought for ever. Ours is kept
on disk, and sets none.
- It compiles its C functions' wrappers, and our functions, again for every loader: now once.
- numba's `workqueue` threads abort the process when two loaders run together: it comes last.
"""

import mmap
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numba
import numpy as np
import torch

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
    from ffcv.libffcv import imdecode, resize_crop
    from ffcv.loader import Loader
    from ffcv.loader.epoch_iterator import EpochIterator
    from ffcv.memory_allocator import MemoryAllocator
    from ffcv.memory_managers import os_cache
    from ffcv.pipeline.allocation_query import AllocationQuery
    from ffcv.pipeline.compiler import Compiler
    from ffcv.pipeline.operation import Operation
    from ffcv.pipeline.state import State
    from ffcv.reader import Reader
    from ffcv.transforms import Squeeze, ToDevice, ToTensor, ToTorchImage
    from ffcv.utils import cast_int_to_byte_ptr
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
def _read(address, state):
    size = state[2][np.searchsorted(state[1], address)]
    return state[0][address : address + size]


os_cache.OSCacheManager.compile_reader = lambda self: _read


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
    "cast_int_to_byte_ptr",
    "handle_sample",
    "imdecode",
    "resize_crop",
    "resizer",
]
