"""FFCV, imported with what is mended here seen in version 1.0.2. Import its parts from here only.

- Importing it compiles a numba dictionary of two entries, for three seconds: a plain one serves.
- Importing it sets torch's thread count to 1, and every loader sets it again, from a second thread: it is left alone.
- numba's `workqueue` threads abort the process when two loaders run together: it comes last.
"""

from unittest import mock

import numba
import torch

numba.config.THREADING_LAYER_PRIORITY = ["tbb", "omp", "workqueue"]

_threads = torch.get_num_threads()
with mock.patch("numba.typed.Dict", dict):
    from ffcv.fields import IntField, RGBImageField
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.rgb_image import SimpleRGBImageDecoder, resizer
    from ffcv.loader import Loader
    from ffcv.loader.epoch_iterator import EpochIterator
    from ffcv.memory_allocator import MemoryAllocator
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

__all__ = [
    "AllocationQuery", "Compiler", "DatasetWriter", "EpochIterator", "IntDecoder", "IntField", "Loader", "MemoryAllocator",
    "Operation", "RGBImageField", "Reader", "SimpleRGBImageDecoder", "Squeeze", "State", "ToDevice", "ToTensor", "ToTorchImage",
    "cast_int_to_byte_ptr", "handle_sample", "resizer",
]
