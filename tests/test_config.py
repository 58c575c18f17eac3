"""Bad input is refused in one line that names the key, the value and the remedy."""

import pytest

from dist_resnet.config import Config, config_file
from dist_resnet.config.known_as import KNOWN_AS
from launch.__main__ import parser_of
from launch.executors import cluster, run_dir


@pytest.fixture
def path(tmp_path):
    (tmp_path / "c.yaml").write_text("optim: {lr: 0.1}")
    return tmp_path / "c.yaml"


@pytest.mark.parametrize("family", ["cifar", "imagenet", "speedrun"])
def test_a_saved_configuration_loads_as_it_was(path, family):
    config = config_file.load(path, ["--model.family", family])
    config.save(path)
    assert config_file.load(path) == config and (family != "cifar" or config == Config())
    assert config_file.load(path).digest() == config.digest()


def test_overrides_are_typed(path):
    config = config_file.load(
        path,
        [
            "--optim.lr",
            "5e-5",
            "--schedule.milestones=[100, 200]",
            "--optim.nesterov",
            "true",
            "--batch.global",
            "256",
            "--batch.per_worker",
            "null",
            "--tracking.tags",
            '["a", "b"]',
        ],
    )
    assert config.optim.lr == 5e-5 and config.optim.nesterov is True
    assert config.schedule.milestones == (100, 200) and config.tracking.tags == ("a", "b")
    assert config.batch.global_ == 256 and config.to_dict()["batch"]["global"] == 256
    assert config.digest() != Config().digest()


@pytest.mark.parametrize(
    "overrides, parts",
    [
        (["--optim.lrr", "0.1"], ["optim.lrr", "optim.lr"]),
        (["--optimizer.lr", "0.1"], ["optimizer.lr", "--help"]),
        (["--optim.lr", "fast"], ["command line: ", "optim.lr", "fast", "a number"]),
        (["--optim.lr", "-0.1"], ["optim.lr", "-0.1", "positive"]),
        (["--optim.lr", "nan"], ["optim.lr", "nan"]),
        (["--optim.lr", "inf"], ["optim.lr", "inf", "a number"]),
        (["--data.crop_area", "[0.1, .inf]"], ["data.crop_area", "inf", "finite"]),
        (["--train.seed", "one"], ["train.seed", "one", "a whole number"]),
        (["--train.keep_checkpoints", "0"], ["train.keep_checkpoints", "at least 1"]),
        (["--train.final_split", "test"], ["train.final_split", "--data.evaluate_on val"]),
        (["--model.family", "vgg"], ["model.family", "vgg", "imagenet"]),
        (["--model.shortcut", "D"], ["model.shortcut", "D", "'A', 'B'"]),
        (
            ["--model.shortcut", "none", "--model.stochastic_depth", "0.5"],
            ["model.shortcut", "model.stochastic_depth", "shortcut A"],
        ),
        (
            ["--model.block_order", "relu_before_add", "--model.zero_init_last_gamma", "true"],
            ["model.zero_init_last_gamma", "gradient"],
        ),
        (
            ["--model.stochastic_depth", "0.5", "--train.all_reduce", "buckets"],
            ["train.all_reduce", "buckets", "model.stochastic_depth"],
        ),
        (
            ["--optim.name", "lars", "--train.precision", "fp16"],
            ["optim.name", "lars", "--train.precision bf16"],
        ),
        (["--optim.name", "lamb", "--optim.nesterov", "true"], ["optim.nesterov", "muon"]),
        (["--data.mix_share", "0"], ["data.mix_share", "(0, 1]"]),
        (["--model.name", "resnet21"], ["resnet21", "6n+2"]),
        (["--model.family", "imagenet", "--model.name", "resnet20"], ["resnet20", "resnet152"]),
        (
            ["--model.family", "imagenet", "--model.name", "resnet50", "--model.width", "2"],
            ["model.width", "cifar"],
        ),
        (["--model.family", "speedrun", "--model.name", "resnet9"], ["resnet9", "3n+2"]),
        (["--model.activation", "gelu"], ["model.activation", "speedrun"]),
        (
            ["--train.cuda_graph", "true", "--train.all_reduce", "buckets"],
            ["train.cuda_graph", "--train.all_reduce flat"],
        ),
        (["--model.bn", "first", "--model.block_order", "preact"], ["model.bn", "preact"]),
        (["--schedule.milestones", "[32000, 70000]"], ["70000", "64000", "schedule.steps"]),
        (["--schedule.milestones", "[3, 2]"], ["[3, 2]", "rise"]),
        (["--schedule.decay", "cosine"], ["schedule.milestones", "[]"]),
        (["--batch.global", "256"], ["batch.per_worker = 128", "batch.global = 256", "null"]),
        (["--batch.per_worker", "null"], ["batch.per_worker", "128"]),
        (["--train.log_every", "often"], ["train.log_every", "often", "400 steps"]),
        (["--train.log_every", "1.5 steps"], ["whole"]),
        (["--optim.lr"], ["--optim.lr", "no value"]),
        (["0.1"], ["0.1", "--section.key"]),
    ],
)
def test_bad_overrides(path, overrides, parts):
    with pytest.raises(ValueError, match=r".") as error:
        config_file.load(path, overrides)
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize(
    "text, part",
    [
        ("optim: {lrr: 1}", "optim.lr"),
        ("optimizer: {lr: 1}", "optim"),
        ("optim: 3", "section"),
        ("- 1", "sections"),
        ("optim: {lr: [1", "YAML"),
        ("optim: {lr: '0.1 or so'}", "optim.lr"),
        ("optim: {lr: 0.1, momentum: 0.9, lr: 0.2}", "bad.yaml.*'lr' stands there twice"),
        ("train: {seed: 1}\noptim: {lr: 1}\ntrain: {seed: 2}", "'train'.*twice.*line 3"),
        ("model: {family: imagenet, name: resnet50, width: 2}", "model.width.*family cifar has it"),
        ("model: {stem: cifar}", "model.stem.*family imagenet has it.*--model.family imagenet"),
    ],
)
def test_bad_files(tmp_path, text, part):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ValueError, match=part) as error:
        config_file.load(tmp_path / "bad.yaml")
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "latin.yaml").write_bytes("tracking: {project: Zürich}".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin.yaml' is not UTF-8 text"):
        config_file.load(tmp_path / "latin.yaml")


def test_missing_file(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        config_file.load(tmp_path / "none.yaml")


def test_help_lists_every_key_with_a_comment():
    text = config_file.describe()
    for key in set(config_file.keys()):
        default, comment = text.split(f"  --{key}  ")[1].split("\n")[:2]
        assert default.startswith("(default: ") and len(comment.strip()) > 1, key


@pytest.mark.parametrize(
    "key, ours",
    [
        ("lr", "here it is optim.lr;"),
        ("optim.learning_rate", "here it is optim.lr;"),
        ("optimizer.lr", "here it is optim.lr;"),
        ("batch_size", "here it is batch.global or batch.per_worker;"),
        ("weight-decay", "here it is optim.weight_decay;"),
        ("train.epochs", "here it is schedule.steps (epochs x training images"),
        ("seed", "here it is train.seed;"),
        ("workers", "here it is data.loader_threads or --workers-per-node;"),
        ("resume", "train.init_from (weights only; to resume, give the same command again)"),
        ("momentum", "nearest: optim.momentum;"),
        ("optim.momentun", "nearest: optim.momentum"),
        ("foo", "the sections are model, data, batch,"),
    ],
)
def test_what_others_call_a_key_is_answered_with_ours(path, key, ours):
    with pytest.raises(ValueError, match="unknown key") as error:
        config_file.load(path, [f"--{key}", "1"])
    assert ours in str(error.value) and len(str(error.value)) < 250


def test_every_key_that_is_known_elsewhere_is_one():
    options = {key for key in KNOWN_AS if key.startswith("--")}
    assert set(KNOWN_AS) - options <= set(config_file.keys())
    assert options <= set(parser_of("train")._option_string_actions)


def test_every_configuration_that_comes_along_loads():
    from conftest import ROOT

    names = sorted(p.name for p in (ROOT / "configs").glob("*.yaml"))
    assert {"quickstart.yaml", "resnet20.yaml", "resnet110.yaml", "resnet1202.yaml"} <= set(names)
    for name in names:
        config_file.load(ROOT / "configs" / name)
    assert cluster.load(ROOT / "configs/cluster/example.yaml").gpus_per_node == 4


def test_cluster_files_are_strict(tmp_path):
    path = tmp_path / "c.yaml"
    for text, part in (
        ("partion: gpu", "partition"),
        ("gpus_per_node: a100:many", "gpus_per_node.*a100:4"),
        ("gpus_per_node: 0", "gpus_per_node"),
        ("sbatch: {time: 5}", "sbatch.*'time'.*keys of their own"),
        ("time: 0", "time"),
        ("{time: 1, signal_delay_s: 90}", "signal_delay_s"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=part):
            cluster.load(path)


def test_run_dir_refuses_another_configuration(tmp_path, path):
    run_dir.create(tmp_path / "run", config_file.load(path))
    run_dir.create(tmp_path / "run", config_file.load(path))
    with pytest.raises(ValueError, match=r"optim.lr 0.1 there, 0.2 here.*--run-dir"):
        run_dir.create(tmp_path / "run", config_file.load(path, ["--optim.lr", "0.2"]))
