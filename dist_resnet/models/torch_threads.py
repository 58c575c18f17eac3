"""Compiled loops in torch's own OpenMP threads.

numba's threads would be others. Each pool waits for work by spinning, so that the two would keep
the cores from each other."""

import ctypes
from pathlib import Path
from typing import Any

import torch
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

FORK, RANK, SIZE = "GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads"


def _found() -> bool:
    """Make torch's OpenMP known to compiled code. GNU's, LLVM's and Intel's have these names."""
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        addresses = {name: getattr(library, name) for name in (FORK, RANK, SIZE)}
    except (OSError, AttributeError):
        nothing = ctypes.CDLL(None).abort
        addresses = dict.fromkeys((FORK, RANK, SIZE), nothing)
        return False
    finally:
        for name, function in addresses.items():
            binding.add_symbol(f"torch_{name}", ctypes.cast(function, ctypes.c_void_p).value)
    return True


FOUND = _found()


@intrinsic
def shared(typing_context: Any, kernel: Any, arguments: Any, blocks: Any, threads: Any) -> Any:
    """shared(kernel, arguments, blocks, threads), inside of compiled code: the compiled
    kernel(*arguments, begin, end) for consecutive ranges of range(blocks), one to a thread. It must
    not raise."""
    taken = (*arguments.types, types.intp, types.intp)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        _, packed, blocks, threads = values
        compiled = kernel.dispatcher.get_compile_result(types.none(*taken))
        context.active_code_library.add_linking_library(compiled.library)
        given = cgutils.alloca_once_value(builder, cgutils.pack_struct(builder, [packed, blocks]))
        task = _task(context, builder.module, compiled, given.type.pointee, taken)
        fork = ir.FunctionType(
            ir.VoidType(), [task.type, cgutils.voidptr_t, ir.IntType(32), ir.IntType(32)]
        )
        number = builder.trunc(threads, ir.IntType(32))
        builder.call(
            cgutils.get_or_insert_function(builder.module, fork, f"torch_{FORK}"),
            [task, builder.bitcast(given, cgutils.voidptr_t), number, ir.IntType(32)(0)],
        )
        return context.get_dummy_value()

    return types.void(kernel, arguments, types.intp, types.intp), generate


def _task(context: Any, module: Any, compiled: Any, given: ir.Type, taken: tuple) -> Any:
    """void task(void *given): one thread's range, as OpenMP calls it."""
    name = module.get_unique_name("task")
    task = ir.Function(module, ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t]), name)
    task.linkage = "internal"
    builder = ir.IRBuilder(task.append_basic_block())
    packed, blocks = cgutils.unpack_tuple(
        builder, builder.load(builder.bitcast(task.args[0], given.as_pointer()))
    )
    number = ir.FunctionType(ir.IntType(32), [])
    rank, size = (
        builder.zext(
            builder.call(cgutils.get_or_insert_function(module, number, f"torch_{name}"), []),
            blocks.type,
        )
        for name in (RANK, SIZE)
    )
    begin, end = (
        builder.udiv(builder.mul(blocks, k), size) for k in (rank, builder.add(rank, size.type(1)))
    )
    context.call_conv.call_function(
        builder,
        context.declare_function(module, compiled.fndesc),
        types.none,
        taken,
        [*cgutils.unpack_tuple(builder, packed), begin, end],
    )
    builder.ret_void()
    return task
