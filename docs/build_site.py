"""What MkDocs needs besides docs/: pages that lie elsewhere in the repository, a reference made of
settings and parsers, and a check that no page loads anything from the network."""

import dataclasses
import html
import os
import posixpath
import re
import sys
import typing
from collections.abc import Iterable
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from dist_resnet.config.config_file import DEFAULTS  # noqa: E402
from dist_resnet.config.known_as import KNOWN_AS  # noqa: E402
from dist_resnet.config.model import FAMILIES  # noqa: E402
from dist_resnet.config.section import key_of  # noqa: E402
from launch.__main__ import COMMANDS, parser_of  # noqa: E402
from launch.executors.cluster import Cluster  # noqa: E402

ELSEWHERE = {  # page -> its file
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "upgrading.md": "UPGRADING.md",
    "benchmarks.md": "benchmarks/README.md",
    "configurations.md": "configs/README.md",
}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#:]+)(#[^)\s]*)?\)")
LOADED = re.compile(
    r"<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)=\"?(?:https?:)?//[^>]*>"
)
API = (
    "dist_resnet.load",
    "dist_resnet.weights.classifier.Classifier",
    "dist_resnet.config.config_file.load",
    "dist_resnet.config.Config",
    "dist_resnet.worker.main",
    "dist_resnet.worker.evaluate",
    "dist_resnet.reports.comparison.compare",
    "dist_resnet.tracking.tracker.read_metrics",
    "dist_resnet.models.build",
)


def on_files(files: "Files", config: "MkDocsConfig") -> "Files":
    from mkdocs.structure.files import File

    pages = {page: (ROOT / path).read_text() for page, path in ELSEWHERE.items()}
    pages |= {
        "reference/configuration.md": configuration(),
        "reference/commands.md": commands(),
        "reference/cluster.md": cluster(),
        "reference/python.md": python(),
    }
    for page, content in pages.items():
        files.append(File.generated(config, page, content=content))
    return files


def on_page_markdown(markdown: str, page: "Page", config: "MkDocsConfig", files: "Files") -> str:
    """Links between files of the repository become links between pages."""
    uri = page.file.src_uri
    folder = posixpath.dirname(ELSEWHERE.get(uri, f"docs/{uri}"))

    def on_site(match: re.Match[str]) -> str:
        image, text, target, anchor = match.groups()
        path = posixpath.normpath(posixpath.join(folder, target))
        found = _page_of(path)
        if found is not None:
            link = posixpath.relpath(found, posixpath.dirname(uri) or ".")
            return f"{image}[{text}]({link}{anchor or ''})"
        return text if (ROOT / path).exists() else match[0]  # what is no page, or is not there

    return LINK.sub(on_site, _indented(markdown))


def _indented(markdown: str) -> str:
    """What belongs to an item of a list, by four spaces, as Python's Markdown wants it."""
    in_list = re.compile(r"(?ms)^  ```.*?^  ```$")
    markdown = in_list.sub(lambda match: re.sub(r"(?m)^", "  ", match[0]), markdown)
    parts = re.split(r"(?ms)(^```.*?^```$)", markdown)
    parts[::2] = [re.sub(r"(?m)^  (?! )", "    ", text) for text in parts[::2]]
    return "".join(parts)


def on_post_build(config: "MkDocsConfig") -> None:
    for path in Path(config.site_dir).rglob("*.html"):
        if found := LOADED.search(path.read_text()):
            raise ValueError(f"{path} loads from the network: {found[0]}")


def _page_of(path: str) -> str | None:
    """The page that a file of the repository has become."""
    for page, source in ELSEWHERE.items():
        if path in (source, posixpath.dirname(source)) and path:
            return page
    inside = path.removeprefix("docs/")
    return inside if inside != path and (ROOT / path).is_file() else None


def configuration() -> str:
    """Every key: type, default, meaning, and what it is called elsewhere."""
    lines = [
        "# Configuration",
        "",
        "Keys of a YAML file (`optim: {lr: 0.2}`) and of the command line (`--optim.lr 0.2`). "
        "Keys that are *free* may change at any start of a run.",
    ]
    shown: set[str] = set()
    for family, kind in FAMILIES.items():
        lines += ["", f"## model, family {family}", "", (kind.__doc__ or "").strip(), ""]
        lines += _table("model", kind(), shown)
        shown |= {"family", "bn_momentum", "bn_eps", "bn_scale"}  # the same in all families
    for name, section in DEFAULTS.items():
        if name != "model":
            lines += ["", f"## {name}", "", *_table(name, section, set())]
    return "\n".join(lines) + "\n"


def _table(name: str, section: Any, shown: set[str]) -> Iterable[str]:
    yield "| key | type | default | meaning | known elsewhere as |"
    yield "|---|---|---|---|---|"
    for field in dataclasses.fields(section):
        if field.name in shown:
            continue
        key = f"{name}.{key_of(field)}"
        names = ", ".join(f"`{other}`" for other in KNOWN_AS.get(key, ()))
        free = " (free)" if field.metadata["may_change"] else ""
        yield _row(
            f"`{key}`",
            _type(field.type),
            f"`{_yaml(getattr(section, field.name))}`",
            html.escape(field.metadata["comment"], quote=False) + free,
            names,
        )


def _type(kind: Any) -> str:
    """A type in words."""
    origin, of = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return ", ".join(f"`{word}`" for word in of)
    if origin is tuple:
        return f"list of {_type(of[0])}"
    if of and origin is not dict:
        return " or ".join(_type(each) for each in of)
    words = {int: "whole number", float: "number", bool: "true or false", str: "text"}
    return words.get(kind, "`null`" if kind is NoneType else "mapping")


def _yaml(value: Any) -> str:
    if isinstance(value, tuple):
        return str(list(value))
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return str(value)


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def cluster() -> str:
    lines = [
        "# Cluster files",
        "",
        "What `--cluster FILE.yaml` names, such as `configs/cluster/example.yaml`; "
        "[how jobs run on SLURM](../slurm.md).",
        "",
        "| key | type | default | meaning |",
        "|---|---|---|---|",
    ]
    for field in dataclasses.fields(Cluster):
        meaning = field.metadata["comment"] or f"as sbatch --{field.name.replace('_', '-')}"
        lines.append(
            _row(f"`{field.name}`", _type(field.type), f"`{_yaml(field.default)}`", meaning)
        )
    return "\n".join(lines) + "\n"


def commands() -> str:
    """What `--help` prints."""
    os.environ["COLUMNS"] = "96"
    lines = ["# Command line", "", "Commands that take `[--section.key value ...]` take any"]
    lines[-1] += " [key of a configuration](configuration.md) besides."
    for name, command in COMMANDS.items():
        if not command.for_scripts:
            parser = parser_of(name)
            parser.epilog = None
            lines += ["", f"## {name}", "", "```text", parser.format_help().strip(), "```"]
    return "\n".join(lines) + "\n"


def python() -> str:
    lines = ["# Python", "", "What is not here is internal, and may change from one version to the"]
    lines[-1] += " next: [architecture](../architecture.md)."
    return "\n".join([*lines, *(f"\n::: {name}" for name in API)]) + "\n"
