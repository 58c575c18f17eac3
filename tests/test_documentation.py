"""Every block of README and docs/ works: what only looks is run on a small training, Python too; of
the rest, which needs a cluster, a GPU, the network or hours, commands, options, keys and files
exist."""

import ast
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from conftest import ROOT
from PIL import Image
from torch.distributed.run import get_args_parser

from dist_resnet.config import config_file
from dist_resnet.prepare import betons, shapes
from launch.__main__ import COMMANDS, main, parser_of
from launch.executors import cluster
from launch.sweeps import definition

sys.path.insert(0, str(ROOT / "docs"))
import build_site

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("configs/*.md")])
LANGUAGES = ("bash", "python", "yaml", "text")  # a sweep's file; what is printed
COLUMNS = 100
RUN = "runs/quickstart-0123abcd"
LOOKS = {"compare", "describe", "estimate", "export", "predict", "status"}  # or with --dry-run
SLOW = ("onnx", "--watch", "--device")  # are parsed
NOT_OURS = {
    ".",
    "apptainer",
    "cd",
    "conda",
    "docker",
    "export",
    "git",
    "scancel",
    "scontrol",
    "tail",
}
SBATCH = {
    "account", "array", "cpus-per-task", "gpus-per-node", "nodes", "ntasks-per-node", "parsable",
    "partition", "signal", "time",
}  # fmt: skip
FOLDERS = ("benchmarks", "configs", "container", "dist_resnet", "docs", "launch", "slurm", "tests")


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    lines, began, language = page.read_text().splitlines(), None, ""
    for number, line in enumerate(lines, 1):
        if not line.lstrip().startswith("```"):
            continue
        if began is None:
            began, language = number, line.strip().strip("`")
        else:
            text = textwrap.dedent("\n".join(lines[began : number - 1]))
            yield Block(page, began, language, text)
            began = None
    assert began is None, f"{page}: the block of line {began} does not end"


BLOCKS = [block for page in PAGES for block in blocks(page)]


def of(language: str):
    found = [block for block in BLOCKS if block.language == language]
    return pytest.mark.parametrize("block", found, ids=str)


@pytest.fixture(scope="module")
def clone(tmp_path_factory, workers):
    """A checkout with betons and a run of two steps: shapes, under the name of CIFAR-10."""
    folder = tmp_path_factory.mktemp("clone")
    for path in ROOT.iterdir():
        if path.name not in ("data", "runs", ".git"):
            (folder / path.name).symlink_to(path)
    drawn = replace(shapes.make(600, 100), name="cifar10")
    betons.prepare(drawn, folder / "data/cifar10", val=100, seed=0)
    (folder / "data/cifar10-45k").symlink_to(folder / "data/cifar10")
    words = ["--data.dir", folder / "data/cifar10", "--train.max_steps", 2, "--model.name=resnet8"]
    words += ["--tracking.wandb=disabled", "--batch.per_worker=64"]
    workers.train(ROOT / "configs/quickstart.yaml", folder / RUN, *words)
    (folder / "runs/quickstart").symlink_to(folder / RUN)
    shutil.copytree(folder / RUN, folder / "runs/batch/0")
    for name in ("cat.png", "ship.jpg", "photos/one.png", f"data/test/{shapes.CLASSES[0]}/a.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 50), "teal").save(folder / name)
    return folder


@pytest.fixture
def here(clone, monkeypatch) -> Path:
    monkeypatch.chdir(clone)
    return clone


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_block_has_a_language_and_fits(block):
    assert block.language in LANGUAGES, f"{block}: {block.language!r}, not one of {LANGUAGES}"
    for line in block.text.splitlines():
        assert len(line) <= COLUMNS, f"{block}: {len(line)} columns: {line}"


@of("python")
def test_python_runs(here, block):
    exec(compile(block.text, str(block), "exec"), {})


@of("yaml")
def test_yaml_belongs_to_a_sweep_file(tmp_path, block):
    """A piece of one is added to the page's first."""
    first = next(b for b in BLOCKS if b.page == block.page and b.language == "yaml")
    content = yaml.safe_load(first.text) | yaml.safe_load(block.text)
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(content))
    definition.load(tmp_path / "sweep.yaml")


@of("bash")
def test_bash_does_what_it_says(here, block, capsys):
    done = subprocess.run(["bash", "-n"], input=block.text, text=True, capture_output=True)
    assert done.returncode == 0 and not done.stderr, f"{block}: {done.stderr}"
    for words in commands(block.text):
        check(words, str(block))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_and_keys_in_running_text_exist(page):
    """Of commands that may be cut short; what has gone may be named where changes are."""
    if page.name in ("CHANGELOG.md", "UPGRADING.md"):
        return
    text, keys = re.sub(r"(?ms)^ *```.*?^ *```", "", page.read_text()), set(config_file.keys())
    for name, rest in re.findall(r"`dist-resnet (\w+)([^`]*)`", text):
        valid = set(parser_of(name)._option_string_actions)
        valid |= {f"--{key}" for key in keys} if COMMANDS[name].overrides else set()
        for option in re.findall(r"--[\w.-]+", rest):
            assert option in valid, f"{page.name}: {name} has no {option}"
    sections = "|".join(config_file.DEFAULTS)
    for key in re.findall(rf"`(?:--)?((?:{sections})\.[a-z_]+)(?:[ =][^`]*)?`", text):
        assert key in keys or key.endswith(".py"), f"{page.name}: no key {key}"


def commands(text: str) -> Iterator[list[str]]:
    """A shell's simple commands, without assignments and redirections."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for token in [*lexer, ";"]:
            if set(token) <= set("();<>|&"):
                if words:
                    yield words
                words = [] if "<" not in token and ">" not in token else ["cd"]
            elif words or not re.fullmatch(r"\w+=.*", token):
                words.append(token)


def check(words: list[str], where: str) -> None:
    """Raises AssertionError, or what the command itself raises of a wrong option or key."""
    for word in words:
        path = Path(word)
        if path.parts and path.parts[0] in FOLDERS and "/" in word:
            assert (ROOT / path).exists(), f"{where}: no {word}"
    name, rest = Path(words[0]).name, words[1:]
    if name in ("python", "python3") and rest[:1] == ["-m"]:
        name, rest = rest[1], rest[2:]
    if name in ("dist-resnet", "dist_resnet"):
        _check_ours(rest, where)
    elif name.startswith("benchmarks."):
        _check_options((ROOT / name.replace(".", "/")).with_suffix(".py"), rest, where)
    elif name == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
        for word in rest:
            assert word in targets or "=" in word, f"{where}: make has no {word}"
    elif name == "sbatch":
        _check_sbatch(rest, where)
    elif name == "torchrun":
        asked = get_args_parser().parse_args(rest)
        assert asked.module and asked.training_script == "dist_resnet.worker", where
    elif name in ("pip", "wheel", "venv"):
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        for extra in re.findall(r"(?:dist-resnet|\.)\[([\w,-]+)\]", " ".join(rest)):
            assert set(extra.split(",")) <= set(extras["optional-dependencies"]), (
                f"{where}: {extra}"
            )
    elif name == "apptainer" and "dist-resnet" in rest:
        _check_ours(rest[rest.index("dist-resnet") + 1 :], where, run=False)
    else:
        assert name in NOT_OURS, f"{where}: what is {name}?"


def _check_ours(words: list[str], where: str, run: bool = True) -> None:
    name = words[0]
    assert name in COMMANDS, f"{where}: no command {name}"
    given = [str(found) for word in words[1:] for found in _expanded(word)]
    options, overrides = parser_of(name).parse_known_args(given)
    assert COMMANDS[name].overrides or not overrides, f"{where}: {overrides}"
    if name == "sweep" or getattr(options, "sweep_run", None) is not None:
        sweep = definition.load(options.file if name == "sweep" else options.config)
        config_file.load(sweep.config, [*sweep.fixed, *overrides])
    elif COMMANDS[name].overrides:
        config_file.load(options.config, overrides)
    if getattr(options, "cluster", "").endswith(".yaml"):
        cluster.load(Path(options.cluster))
    looks = name in LOOKS or (name == "train" and options.dry_run)
    if run and looks and not any(word in " ".join(given) for word in SLOW):
        with pytest.raises(SystemExit) as ended:
            main([name, *given])
        assert ended.value.code == 0, f"{where}: {shlex.join([name, *given])}"


def _expanded(word: str) -> list[Path | str]:
    return sorted(Path().glob(word)) if "*" in word else [word]


def _check_sbatch(words: list[str], where: str) -> None:
    place = next(i for i, word in enumerate(words) if word.startswith("slurm/"))
    for word in words[:place]:
        name = word.removeprefix("--").split("=")[0]
        assert name in SBATCH, f"{where}: has sbatch --{name}?"
    script = (ROOT / words[place]).read_text()
    assert "#SBATCH --nodes=" in script, where
    name, *rest = shlex.split(script.splitlines()[-1].replace("$SLURM_ARRAY_TASK_ID", "0"))
    assert rest.pop() == "$@"
    command = {"train": "stage", "prepare": "prepare"}[name]
    _check_ours([command, *rest, *words[place + 1 :]], where, run=False)


def _check_options(path: Path, words: list[str], where: str) -> None:
    """Of a benchmark, whose import would take seconds."""
    assert path.exists(), f"{where}: no {path}"
    sources = path.read_text() + (path.parent / "measure.py").read_text()
    said = {node.value for node in ast.walk(ast.parse(sources)) if isinstance(node, ast.Constant)}
    for word in words:
        assert not word.startswith("--") or word in said, f"{where}: {path.stem} has no {word}"


def test_the_reference_has_every_key_and_command():
    pages = (build_site.configuration(), build_site.commands(), build_site.cluster())
    for key in set(config_file.keys()):
        assert f"\n| `{key}` | " in pages[0], key
    assert "| `optim.lr` | number | `0.1` |" in pages[0] and "`learning_rate`" in pages[0]
    assert "\n## train\n" in pages[1] and "\n## stage\n" not in pages[1]
    assert all(f"\n| `{name}` | " in pages[2] for name in cluster.Cluster.__dataclass_fields__)


def test_links_between_files_become_links_between_pages():
    def shown(uri, text):
        page = SimpleNamespace(file=SimpleNamespace(src_uri=uri))
        return build_site.on_page_markdown(text, page, None, None)

    assert shown("index.md", "[a](docs/slurm.md#x)") == "[a](slurm.md#x)"
    assert shown("slurm.md", "[b](../benchmarks/README.md#y)") == "[b](benchmarks.md#y)"
    assert shown("benchmarks.md", "[c](../docs/slurm.md)") == "[c](slurm.md)"
    assert shown("index.md", "![d](docs/resnet20.png)") == "![d](resnet20.png)"
    assert shown("index.md", "[e](LICENSE)") == "e"
    assert shown("index.md", "[f](nowhere.md)") == "[f](nowhere.md)"
    assert shown("slurm.md", "- a\n\n  b") == "- a\n\n    b"
