"""BN, addition and ReLU in one pass, and gradients added, against torch's own operations."""

import pytest
import torch
from torch import nn

from dist_resnet.models import fused_kernels, fused_norm, torch_threads
from dist_resnet.models.fused_norm import norm_add_relu, two_ways

ULP = {torch.bfloat16: 2**-8, torch.float32: 2**-16}  # relative; float32's sums are of thousands
SHAPES = [(8, 16, 6, 6), (3, 32, 5, 5), (7, 20, 3, 1), (5, 256, 1, 1), (16, 16, 32, 32)]


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch.set_num_threads
    torch.set_num_threads(before)


def outcome(dtype, relu, skips, training, shape):
    """(output, gradients of input, skip, gamma and beta, running statistics) of one step."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(shape[1], momentum=0.3).train(training)
    with torch.no_grad():
        norm.weight.uniform_(-1, 1)
        norm.bias.uniform_(-1, 1)
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
    norm.to(torch.float64 if dtype == torch.float64 else torch.float32)
    x, skip, dy = ((3 * torch.randn(shape) + 2).bfloat16().to(dtype) for _ in range(3))
    x = x.to(memory_format=torch.channels_last).requires_grad_()
    skip = skip.requires_grad_() if skips else None  # in another memory format
    y = norm_add_relu(norm, x, skip, relu)
    y.backward(dy)
    found = [y.detach(), x.grad, norm.weight.grad, norm.bias.grad]
    found += [norm.running_mean, norm.running_var]
    return [t.double() for t in (*found, *([skip.grad] if skips else []))]


@pytest.mark.parametrize("dtype", ULP)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("relu, skips, training", [
    (True, False, True), (True, True, True), (False, True, True), (False, False, True),
    (True, True, False),
])  # fmt: skip
def test_agrees_with_torch_in_float64(dtype, relu, skips, training, shape):
    fused = outcome(dtype, relu, skips, training, shape)
    exact = outcome(torch.float64, relu, skips, training, shape)
    for mine, true in zip(fused, exact, strict=True):
        assert (mine - true).norm() <= 1.5 * ULP[dtype] * true.norm()
    assert (fused[4] - exact[4]).norm() <= 1e-6 * exact[4].norm()  # statistics are float32


@pytest.mark.parametrize("dtype", ULP)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_number_of_threads_changes_no_bit(threads, dtype, shape):
    """Of more threads than there are blocks, too, where there is one block."""
    assert torch_threads.FOUND
    one = outcome(dtype, True, True, True, shape)
    for number in (2, 5):
        threads(number)
        for mine, expected in zip(outcome(dtype, True, True, True, shape), one, strict=True):
            assert torch.equal(mine, expected)


@pytest.mark.parametrize("shape", [(8, 16, 6, 6), (7, 20, 3, 1)])
@pytest.mark.parametrize("ways", [1, 2])
def test_gradients_of_two_ways_add_up_to_torchs_bits(monkeypatch, shape, ways):
    """Of a block whose shortcut is another memory format's, and of one without a shortcut."""
    torch.manual_seed(0)
    x, *gradients = (torch.randn(shape).bfloat16() for _ in range(3))
    gradients[0] = gradients[0].to(memory_format=torch.channels_last)
    found, added = [], []
    add = fused_kernels.add
    monkeypatch.setattr(fused_kernels, "add", lambda *given: (added.append(1), add(*given)))
    for fused in (True, False):
        monkeypatch.setattr(fused_norm, "_can_be_fused", lambda x, fused=fused: fused)
        of = x.clone().requires_grad_()
        torch.autograd.backward(two_ways(of)[:ways], gradients[:ways])
        found.append(of.grad)
    assert torch.equal(*found) and len(added) == ways - 1
