"""`dist-resnet compare`: tables, figures and a page of several runs."""

import argparse
import shutil
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from dist_resnet.reports.comparison import (
    Comparison,
    by_commit,
    compare as compare_runs,
    seeds_of,
)
from dist_resnet.reports.search import Search

PIPED = 200  # columns, where nobody says how wide the reader's terminal is


def options(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "What differs between runs, beside what came of it. Also for runs in progress."
    )
    parser.add_argument(
        "run_dirs",
        type=Path,
        nargs="+",
        metavar="RUN_DIR",
        help="or a directory of such, as a sweep's",
    )
    parser.add_argument(
        "--figure",
        type=Path,
        default=Path("compare.png"),
        help="where to draw curves and results",
    )
    parser.add_argument(
        "--html",
        type=Path,
        metavar="FILE",
        help="write one page for a browser, which needs no network",
    )
    form = parser.add_mutually_exclusive_group()
    for name in ("csv", "json", "markdown"):
        form.add_argument(
            f"--{name}",
            action="store_const",
            const=name,
            dest="format",
            help=f"print {name} in place of the table",
        )
    parser.set_defaults(format="table")


def compare(options: argparse.Namespace) -> int:
    report(options.run_dirs, options.figure, options.html, options.format)
    return 0


def report(paths: Sequence[Path], figure: Path, html: Path | None, form: str = "table") -> None:
    """Print what the runs came to, in the form asked for; draw the figure, write the page."""
    from dist_resnet.reports import tables

    found = compare_runs(paths)
    texts = {"csv": tables.as_csv, "json": tables.as_json, "markdown": tables.as_markdown}
    if form != "table":
        sys.stdout.write(texts[form](found))
    else:
        _print_tables(tables.tables(found, _columns()))
        for search in found.searches:
            print(search.words())
    pictures = _draw_searches(found.searches, figure)
    warn_of_commits(found)
    if html:
        names = ", ".join(path.name or str(path) for path in paths[:3])
        title = names + ("..." if len(paths) > 3 else "")
        html.write_text(tables.as_html(found, title, pictures), encoding="utf-8")
    draw(found, figure)
    for path in filter(None, (figure, *pictures, html)):
        print(f"written: {path}", file=sys.stderr)


def _draw_searches(searches: Sequence[Search], figure: Path) -> list[Path]:
    """Beside the figure; none where nothing has been reported yet."""
    from dist_resnet.reports.search_figure import draw_search  # matplotlib

    begun = [search for search in searches if search.best_so_far()]
    path = figure.with_name(f"{figure.stem}-search{figure.suffix}")
    return [draw_search(begun, path)] if begun else []


def warn_of_commits(found: Comparison) -> None:
    """On stderr, where not all that is compared was trained by the same code."""
    commits = by_commit(found)
    if len(commits) < 2:
        return
    print("warning: not all of this was trained by the same code:", file=sys.stderr)
    for commit, paths in commits.items():
        dirty = " with changes" if commit.endswith("+") else ""
        names = ", ".join(map(str, paths[:3])) + (", ..." if len(paths) > 3 else "")
        print(f"  commit {commit[:10]}{dirty}: {names}", file=sys.stderr)


def draw(found: Comparison, path: Path) -> None:
    """The figure: the seeds of one setting as one curve, as are runs that stand alone."""
    from dist_resnet.reports import figures  # matplotlib

    together = [runs for runs in seeds_of(found) if len(runs) > 1]
    seeds = {run.path for runs in together for run in runs}
    groups = together + [[run] for run in found.runs if run.path not in seeds]
    drawn = []
    for runs in groups:
        results = [run.top1 for run in runs if run.top1 is not None]
        mean = statistics.mean(results) if results else None
        drawn.append(figures.Group([run.path for run in runs], found.settings(runs[0]), mean))
    figures.draw_comparison(sorted(drawn, key=lambda group: -(group.top1 or 0)), path)


def show(paths: Sequence[Path], figure: Path) -> int:
    """What a training or a sweep ends with: the table, and where the curves are."""
    from dist_resnet.reports import tables

    _print_tables(tables.tables(compare_runs(paths), _columns()))
    print(f"curves: {figure}")
    return 0


def _columns() -> int:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else PIPED


def _print_tables(tables: Sequence[Table]) -> None:
    console = Console(width=_columns())
    for table in tables:
        console.print(table)
