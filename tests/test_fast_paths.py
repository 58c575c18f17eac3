"""What makes a step faster finds out by itself whether it works here: broken on purpose, it is left
out, by name, and the training ends as the plain one does."""

import importlib.util
import json
import math

import planted
import pytest
import torch
from conftest import ON_GPU, ROOT, assert_identical, without_last_checkpoint

from dist_resnet import worker
from dist_resnet.config import config_file, for_device

STEPS = ("--train.max_steps", 4, "--train.all_reduce", "auto", "--train.evaluate_every", "30 steps")
PLAIN = (*STEPS, "--train.all_reduce", "buckets")
EAGER = ("--train.compile", "none")
HALF = ("--train.precision", "bf16")
VIRTUAL = ("--batch.virtual_workers", "4")
SMALL = ("--batch.global", 12)  # triton's interpreter takes its time


def as_captured(outcome, broken=""):
    """A GPU captures a step, unless what it is built on is refused."""
    captures = ON_GPU and not broken.startswith("all_reduce")
    return outcome == "used" if captures else outcome.startswith("refused: ")


def outcomes(run_dir):
    return json.loads((run_dir / "summary.json").read_text())["fast_paths"]


@pytest.fixture
def broken(workers, small_path, tmp_path):
    def train(fault, *settings, size=1):
        run_dir = tmp_path / fault
        workers.make(small_path, run_dir, *STEPS, *settings)
        done = workers.call(planted.train, str(run_dir), fault, size=size)
        assert done == ["completed"] * size
        return run_dir, outcomes(run_dir), workers.output

    return train


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault, path, why, size, settings",
    [
        ("pixel", "crop_flip", "values differ, in 12 im", 1, SMALL),
        ("addition", "add_relu", "loss of step 1 differs by", 1, ("--train.precision", "fp32")),
        ("cast", "cast_together", "of step 1 differs by", 1, HALF),
        ("all_reduce", "all_reduce_flat", "gradient of step 1 differs by", 2, ()),
        ("compiled", "compile", "loss of step 1 differs by", 1, ("--train.compile", "default")),
        ("compiler", "compile", "OSError: no C compiler found", 1, ("--train.compile", "default")),
    ],
)
def test_a_broken_fast_path_is_refused_and_the_training_ends_without_it(
    broken, workers, small_path, tmp_path, fault, path, why, size, settings
):
    run_dir, found, output = broken(fault, *settings, size=size)
    assert found[path].startswith("refused: ") and why in found[path], found
    assert f"warning: fast path {path} refused" in output
    assert as_captured(found.pop("cuda_graph"), path) and "\n" not in str(found)
    assert [name for name, outcome in found.items() if outcome != "used"] == [path]
    plain = tmp_path / "plain"
    workers.make(small_path, plain, *PLAIN, *settings, *EAGER)
    train = planted.by_torchs_operations if fault == "addition" else worker.main
    assert workers.call(train, str(plain), size=size) == ["completed"] * size
    assert outcomes(plain) == {}
    assert_identical(plain, run_dir)


@pytest.mark.slow
def test_what_a_gpu_gets_is_compared_once_and_ends_as_the_plain_way_does(
    broken, workers, small_path, tmp_path
):
    """A capture raises for want of a GPU; the others are used, there the kernel in triton's
    interpreter. A resume compares nothing again, and takes nothing that was refused."""
    run_dir, found, output = broken("kernel", *SMALL, *HALF)
    names = ("crop_flip", "all_reduce_flat", "cast_together", *["add_relu"] * ON_GPU)
    graph = found.pop("cuda_graph")
    assert as_captured(graph) and (ON_GPU or f"fast path cuda_graph {graph}" in output)
    assert found == dict.fromkeys(names, "used")
    assert f"fast paths: {', '.join([*names, *['cuda_graph'] * ON_GPU])} (compared in" in output
    plain = workers.train(small_path, tmp_path / "plain", *PLAIN, *SMALL, *HALF)
    assert_identical(plain, run_dir)

    longer = ("--train.max_steps", 6)
    workers.make(small_path, tmp_path / "again", *STEPS, *SMALL, *HALF, *longer)
    assert workers.call(planted.train, str(tmp_path / "again"), "kernel") == ["completed"]
    without_last_checkpoint(tmp_path / "again", tmp_path / "resumed")
    assert workers.call(planted.train, str(tmp_path / "resumed"), "kernel") == ["completed"]
    assert "resuming at step 4" in workers.output and "fast path" not in workers.output
    assert outcomes(tmp_path / "resumed") == {**found, "cuda_graph": graph}
    assert_identical(tmp_path / "again", tmp_path / "resumed")


@pytest.mark.slow
def test_a_required_fast_path_that_fails_is_an_error(workers, small_path, tmp_path):
    workers.make(small_path, tmp_path / "run", *STEPS, "--train.fast_paths", "require")
    with pytest.raises(RuntimeError, match=r"fast path cuda_graph refused: .*'require'"):
        workers.call(planted.train, str(tmp_path / "run"), "capture")


@pytest.mark.slow
def test_a_spoilt_capture_tells_its_first_cause(broken):
    _, found, _ = broken("capture", *SMALL)
    first, then = found["cuda_graph"].split(" (then ")
    assert first == "refused: RuntimeError: a step that reads the loss"
    assert then == "RuntimeError: operation failed due to a previous error during capture)"


@pytest.mark.slow
def test_too_little_memory_to_compare_ends_no_training(broken):
    """Float32 steps of 12 and 6 images fail, those of 3 are taken. Without any plain steps, only
    what cannot be compared is left out."""
    _, found, output = broken("little memory", *SMALL, *HALF)
    assert found["cast_together"] == found["all_reduce_flat"] == "used"
    for fewer, count in ((6, 12), (3, 6)):
        assert f"comparison with {fewer} images in float32, since {count} fail: CUDA" in output
    _, found, output = broken("no memory", *SMALL, *HALF)
    why = "refused: no plain steps to compare with: OutOfMemoryError: CUDA out of memory"
    assert found.pop("cuda_graph").startswith("refused: ") and set(found.values()) == {why}
    assert f"fast path cast_together {why}" in output


@pytest.mark.slow
def test_off_turns_all_of_it_off(broken, workers, small_path, tmp_path):
    off = ("--train.fast_paths", "off", *SMALL, *HALF)
    run_dir, found, output = broken("pixel", *off, "--train.all_reduce", "flat")
    assert found == {} and "fast path" not in output
    plain = workers.train(small_path, tmp_path / "plain", *PLAIN, *SMALL, *HALF)
    assert_identical(plain, run_dir)


@pytest.mark.parametrize(
    "device, overrides, expected",
    [
        ("cpu", (), ("buckets", "each", False)),
        ("cuda", (), ("flat", "together", True)),
        ("cuda", ("--batch.virtual_workers", "4"), ("ordered", "together", False)),
        ("cuda", ("--train.precision", "fp32"), ("flat", "each", True)),
        ("cuda", ("--train.static_graph", "true"), ("buckets", "each", False)),
        ("cuda", ("--optim.name", "adam"), ("flat", "together", False)),
        ("cuda", ("--train.cuda_graph", "false"), ("flat", "together", False)),
        ("cuda", ("--train.compile", "default"), ("flat", "each", True)),
        ("cuda", ("--train.compile", "max-autotune"), ("flat", "each", False)),
        ("cuda", ("--train.fast_paths", "off"), ("buckets", "each", False)),
        ("cuda", ("--train.fast_paths", "off", *VIRTUAL), ("ordered", "each", False)),
    ],
)
def test_auto_is_the_plain_way_on_the_cpu_and_the_fast_one_on_a_gpu(
    config_path, device, overrides, expected
):
    config = config_file.load(config_path, ["--train.all_reduce", "auto", *overrides])
    train = for_device.settle(config, device).train
    assert (train.all_reduce, train.cast, train.cuda_graph) == expected


def test_imagenets_networks_keep_ddps_buckets_on_a_gpu():
    """Their gradients take longer than their launches."""
    train = for_device.settle(config_file.load("configs/imagenet_resnet50.yaml"), "cuda").train
    assert (train.all_reduce, train.cast, train.cuda_graph) == ("buckets", "each", False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_addition_and_relu_in_one_kernel_are_the_same_bits(dtype, monkeypatch):
    """In triton's interpreter, which cuts bfloat16 off where a GPU rounds; forward and backward, of
    odd sizes, NaN and infinities."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    kernels = a_copy("dist_resnet/models/triton_add_relu.py")
    torch.manual_seed(0)
    shape, layout = (3, 5, 7, 13), {"memory_format": torch.channels_last}
    left, right, dy = (torch.randn(shape).to(dtype).contiguous(**layout) for _ in range(3))
    left[0, 0, 0, :3] = torch.tensor([math.nan, math.inf, -math.inf])
    found = []
    for add_relu in (kernels.add_relu, lambda a, b: torch.relu(a + b)):
        a, b = left.clone().requires_grad_(), right.clone().requires_grad_()
        y = add_relu(a, b)
        y.backward(dy)
        found.append((y, a.grad, b.grad))
    for fast, plain in zip(*found):
        assert torch.equal(fast.nan_to_num(7.0), plain.nan_to_num(7.0))
        assert fast.stride() == plain.stride()
    assert kernels.AddReLU.__name__ in found[0][0].grad_fn.name()
    apart = kernels.add_relu(left.contiguous(), right)
    assert torch.equal(apart.nan_to_num(7.0), found[1][0].nan_to_num(7.0))


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_that_kernel_compiles_for_gpus(capability, dtype):
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = a_copy("dist_resnet/models/triton_add_relu.py").kernel
    types = dict.fromkeys(("left", "right", "out"), f"*{dtype}") | {"size": "i32"}
    source = ASTSource(kernel, types | {"block": "constexpr"}, constexprs={"block": 1024})
    assert triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["cubin"]


def a_copy(path):
    """Of a file of kernels: whether triton interprets is settled when it is imported."""
    pytest.importorskip("triton")
    spec = importlib.util.spec_from_file_location("a_copy_of_kernels", ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
