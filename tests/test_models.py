"""The networks against the papers."""

import copy
import json

import pytest
import torch
from conftest import ROOT
from torch import nn

from dist_resnet import models
from dist_resnet.config import CifarModel, ImagenetModel, Optim
from dist_resnet.models import cifar, description
from dist_resnet.training import optim
from launch.__main__ import main


def count(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    "depth, parameters",
    [
        (20, 269_722),
        (32, 464_154),
        (44, 658_586),
        (56, 853_018),
        (110, 1_727_962),
        (1202, 19_421_274),
    ],
)
def test_parameter_counts_are_the_papers(depth, parameters):
    model = getattr(cifar, f"resnet{depth}")()
    assert count(model) == parameters
    weighted = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(weighted) == depth


@pytest.mark.parametrize("depth", [20, 56, 110, pytest.param(1202, marks=pytest.mark.slow)])
def test_multiply_adds_are_those_worked_out_by_hand(depth):
    """Of every convolution and the last layer, with no parameter or activation in memory."""
    n = (depth - 2) // 6
    expected, inputs = 3 * 9 * 16 * 32**2, 16
    for channels, pixels in ((16, 32**2), (32, 16**2), (64, 8**2)):
        expected += 9 * channels * pixels * (inputs + (2 * n - 1) * channels)
        inputs = channels
    layers = description.describe(CifarModel(name=f"resnet{depth}"), 10, (32, 32), blocks=True)
    assert sum(layer.multiply_adds for layer in layers) == expected + 64 * 10
    assert sum(layer.parameters for layer in layers) == count(getattr(cifar, f"resnet{depth}")())
    # of each convolution's output: what BN takes, and what the next convolution takes
    kept = 4 * (3 * 32**2 + 2 * 16 * 32**2 * (2 * n + 1) + 2 * 2 * n * (32 * 16**2 + 64 * 8**2))
    assert sum(layer.activations for layer in layers) == kept + 4 * 64
    assert len(description.folded(layers)) == 8 and layers[-1].output == (10,)


def test_describe_shows_blocks_or_layers_of_the_configurations_own_network(capsys, tmp_path):
    words = ["describe", str(ROOT / "configs/resnet20.yaml"), "--classes", "100", "--json"]
    plain = ["--layers", "--model.shortcut", "none"]
    drawn = ["--figure", str(tmp_path / "costs.svg")]
    for extra, rows, blocks in (drawn, 9, True), (plain, 39, False):
        with pytest.raises(SystemExit):
            main([*words, *extra, "--model.width", "2"])
        found = json.loads(capsys.readouterr().out)
        assert len(found) == rows and ("Block" in {row["kind"] for row in found}) == blocks
        wide = cifar.build(CifarModel(name="resnet20", width=2), 100)
        assert sum(row["parameters"] for row in found) == count(wide)
    assert "2 x blocks.1" in (tmp_path / "costs.svg").read_text()  # its text, as a comment
    with pytest.raises(SystemExit) as end:
        main(["describe", str(ROOT / "configs/imagenet_resnet50.yaml"), "--paper"])
    assert end.value.code == 1 and "leave CONFIG out" in capsys.readouterr().err


@pytest.mark.parametrize(
    "settings, parameters",
    [
        (dict(shortcut="B"), 269_722 + 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64),
        (
            dict(bn="first"),
            269_722 - 2 * 3 * (16 + 32 + 64) + 3 * (16 + 32 + 64),
        ),  # a bias in place of gamma and beta
        (dict(block_order="bn_after_add"), 269_722),
        (dict(block_order="no_final_relu"), 269_722),
        (dict(block_order="relu_before_add"), 269_722),
        (dict(shortcut="none"), 269_722),
        (
            dict(squeeze_excite=True),
            269_722 + 3 * sum(c * r + r + r * c + c for c, r in ((16, 1), (32, 2), (64, 4))),
        ),
        (dict(downsample="maxpool"), 269_722),
        (dict(stochastic_depth=0.5), 269_722),
        (
            dict(shortcut="C"),
            269_722
            + (3 * 16 * 16 + 16 * 32 + 2 * 32 * 32 + 32 * 64 + 2 * 64 * 64)
            + 2 * 3 * (16 + 32 + 64),
        ),
    ],
)
def test_variants_of_resnet20(settings, parameters):
    assert count(cifar.build(CifarModel(name="resnet20", **settings))) == parameters


def test_wide_resnet_28_10_has_the_published_36_5_million():
    """Zagoruyko and Komodakis 2016, table 1; their depth counts the projections: 28 = 6 * 4 + 4,
    here 26 = 6 * 4 + 2."""
    wide = cifar.build(CifarModel(name="resnet26", width=10, block_order="preact", shortcut="B"))
    assert 36.4e6 < count(wide) < 36.6e6


def test_bottleneck_preact_resnet_164_has_the_published_1_7_million():
    """He et al. 2016, table 4."""
    model = cifar.build(
        CifarModel(name="resnet164", block="bottleneck", block_order="preact", shortcut="B")
    )
    assert 1.68e6 < count(model) < 1.72e6


def test_shortcut_a_subsamples_and_pads_with_zeros():
    x = torch.arange(2 * 16 * 8 * 8.0).view(2, 16, 8, 8)
    y = cifar.Shortcut(16, 2)(x)
    assert (
        torch.equal(y[:, :16], x[:, :, ::2, ::2])
        and y.shape == (2, 32, 4, 4)
        and not y[:, 16:].any()
    )


ORDERS = ("paper", "bn_after_add", "relu_before_add", "no_final_relu", "preact")


@pytest.mark.parametrize("order", ORDERS)
def test_block_orders_differ_where_they_say(order):
    torch.manual_seed(0)
    block = cifar.Block(CifarModel(block_order=order), 4, [(3, 4), (3, 4)], stride=1).eval()
    with torch.no_grad():
        for norm in block.norms:
            norm.running_mean.fill_(0.3), norm.running_var.fill_(2.0), norm.bias.fill_(0.1)
    x = torch.randn(2, 4, 8, 8)
    (c1, c2), (n1, n2), relu = block.convs, block.norms, torch.relu
    expected = {
        "paper": lambda: relu(n2(c2(relu(n1(c1(x))))) + x),
        "bn_after_add": lambda: relu(n2(c2(relu(n1(c1(x)))) + x)),
        "relu_before_add": lambda: relu(n2(c2(relu(n1(c1(x)))))) + x,
        "no_final_relu": lambda: n2(c2(relu(n1(c1(x))))) + x,
        "preact": lambda: c2(relu(n2(c1(relu(n1(x)))))) + x,
    }[order]()
    assert torch.allclose(block(x), expected, atol=1e-6)


@pytest.mark.parametrize("order", ORDERS)
def test_stochastic_depth_leaves_out_a_branch_or_weighs_it(order):
    """Huang et al. 2016, equations 2 and 5: in training the branch or nothing, and nothing of it
    moves; in evaluation the branch times its survival."""
    torch.manual_seed(0)
    config = CifarModel(name="resnet14", block_order=order, stochastic_depth=0.5, shortcut="B")
    network = models.build(config, 10)
    assert [b.survival for b in network.blocks] == pytest.approx(
        [11 / 12, 10 / 12, 9 / 12, 8 / 12, 7 / 12, 0.5]
    )
    block, x = network.blocks[2], torch.randn(4, 16, 8, 8)  # the first of 32 channels
    whole, relu = block(x), torch.relu
    block.dropped = True
    left = block.train()(x)
    left.sum().backward()
    skip, norm = block.shortcut, block.norms[-1]
    expected = {
        "paper": lambda: relu(skip(x)),
        "bn_after_add": lambda: relu(norm(skip(x))),
        "preact": lambda: skip(relu(block.norms[0](x))),
    }.get(order, lambda: skip(x))()
    assert torch.allclose(left, expected, atol=1e-6)
    assert not torch.allclose(left, whole, atol=1e-2)
    assert all(conv.weight.grad is None for conv in block.convs)
    plain = copy.deepcopy(block)
    with torch.no_grad():  # weighed by a layer that comes last in the branch
        last = plain.norms[-1] if order in ("paper", "relu_before_add", "no_final_relu") else None
        for name in ("weight", "bias"):
            if last is not None:
                last.get_parameter(name).mul_(block.survival)
            elif name == "weight":
                plain.convs[-1].weight.mul_(block.survival)
    plain.survival = 1.0
    assert torch.allclose(block.eval()(x), plain.eval()(x), atol=1e-5)


@pytest.mark.parametrize("order", ORDERS)
def test_squeeze_and_excitation_weighs_the_channels_of_the_branch(order):
    torch.manual_seed(0)
    config = CifarModel(name="resnet8", block_order=order, squeeze_excite=True)
    block, x = models.build(config, 10).blocks[0].eval(), torch.randn(4, 16, 8, 8)
    (c1, c2), (n1, n2), relu = block.convs, block.norms, torch.relu

    def weighed(y):
        hidden = relu(block.excite.fc1(y.mean((2, 3), keepdim=True)))
        return y * torch.sigmoid(block.excite.fc2(hidden))

    expected = {
        "paper": lambda: relu(weighed(n2(c2(relu(n1(c1(x)))))) + x),
        "bn_after_add": lambda: relu(n2(weighed(c2(relu(n1(c1(x))))) + x)),
        "relu_before_add": lambda: weighed(relu(n2(c2(relu(n1(c1(x))))))) + x,
        "no_final_relu": lambda: weighed(n2(c2(relu(n1(c1(x)))))) + x,
        "preact": lambda: weighed(c2(relu(n2(c1(relu(n1(x))))))) + x,
    }[order]()
    assert torch.allclose(block(x), expected, atol=1e-6)


def test_a_plain_network_is_its_layers_and_pooling_halves_the_image():
    torch.manual_seed(0)
    plain = cifar.build(CifarModel(name="resnet14", shortcut="none"), 10).eval()
    pooled = cifar.build(CifarModel(name="resnet14", downsample="maxpool"), 10).eval()
    x = images = torch.randn(2, 3, 32, 32)
    convs = [m for m in plain.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in plain.modules() if isinstance(m, nn.BatchNorm2d)]
    for conv, norm in zip(convs, norms, strict=True):
        x = torch.relu(norm(conv(x)))
    assert torch.allclose(plain(images), plain.fc(x.mean((2, 3))), atol=1e-5)
    y = torch.relu(pooled.norm(pooled.conv(images)))
    for number, block in enumerate(pooled.blocks):
        y = nn.functional.max_pool2d(y, 2) if number in (2, 4) else y
        (c1, c2), (n1, n2) = block.convs, block.norms
        skip = nn.functional.pad(y, (0, 0, 0, 0, 0, c1.out_channels - y.shape[1]))
        y = torch.relu(n2(c2(torch.relu(n1(c1(y))))) + skip)
    assert torch.allclose(pooled(images), pooled.fc(y.mean((2, 3))), atol=1e-5)


@pytest.mark.parametrize("order", ["paper", "bn_after_add", "no_final_relu", "preact"])
def test_zero_initialised_branches_still_learn(order):
    model = cifar.build(CifarModel(name="resnet8", block_order=order, zero_init_last_gamma=True))
    model(torch.randn(4, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    last = (
        model.blocks[0].norms[-1].weight
        if order in ("paper", "no_final_relu")
        else model.blocks[0].convs[-1].weight
    )
    assert not last.any() and last.grad.any()


@pytest.mark.parametrize("name, parameters", [("resnet18", 11_689_512), ("resnet50", 25_557_032)])
def test_imagenet_networks_are_torchvisions(name, parameters):
    assert count(models.build(ImagenetModel(name=name), 1000)) == parameters


def test_blurpool_blurs_before_every_stride_but_the_first():
    """The weights keep their names, and every second pixel is read of a blurred image."""
    torch.manual_seed(0)
    sharp, soft = (
        models.build(ImagenetModel(name="resnet50", blurpool=b), 10).eval() for b in (False, True)
    )
    soft.load_state_dict(sharp.state_dict())
    blurs = [name for name, m in soft.named_modules() if m._forward_pre_hooks]
    assert blurs == [
        f"layer{i}.0.{where}" for i in (2, 3, 4) for where in ("conv2", "downsample.0")
    ]
    kernel = torch.outer(*[torch.tensor([1.0, 2.0, 1.0])] * 2).expand(128, 1, 3, 3) / 16
    x = torch.randn(2, 128, 9, 9)
    expected = sharp.layer2[0].conv2(nn.functional.conv2d(x, kernel, padding=1, groups=128))
    assert torch.allclose(soft.layer2[0].conv2(x), expected, atol=1e-5)


def test_cifar_stem_keeps_the_resolution():
    model = models.build(ImagenetModel(name="resnet18", stem="cifar"), 10)
    assert model.maxpool(model.conv1(torch.zeros(1, 3, 32, 32))).shape == (1, 64, 32, 32)


def test_weight_decay_can_leave_out_vectors():
    model = cifar.resnet20()
    (everything,) = optim.parameter_groups(Optim(), model)
    assert everything["weight_decay"] == 1e-4 and len(everything["params"]) == 59
    weights, vectors = optim.parameter_groups(Optim(decay_norm_and_bias=False), model)
    assert weights["weight_decay"] == 1e-4 and vectors["weight_decay"] == 0
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    of_norms = sum(p.numel() for m in norms for p in m.parameters())
    assert sum(p.numel() for p in vectors["params"]) == of_norms + 10
