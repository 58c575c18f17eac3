"""`dist-resnet sweep --dry-run`: what would be trained, where, and how long it may take."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from dist_resnet.config import Config, schedule
from dist_resnet.data import manifest
from dist_resnet.reports.comparison import read_summary
from dist_resnet.tracking.tracker import read_metrics
from launch.sweeps import search as searches
from launch.sweeps.search import Search


def tell_runs(runs: Sequence[tuple[Path, Config]], directory: Path, workers: int) -> None:
    """A line per run: RUN_DIR, what is left of it, and hours."""
    rate, open_hours = hours_per_image(directory), 0.0
    for path, config in runs:
        images, done = images_of(config, workers), _done(path)
        left = max(0.0, images - done)
        open_hours += left * (rate or 0.0)
        state = "complete" if done == math.inf else f"{left:,.0f} of {images:,} images left"
        hours = f", {left * rate:.2f} h" if rate and left else ""
        print(f"{path}  {state}{hours}")
    print(f"{len(runs)} runs; {_estimate(open_hours, rate)}")


def tell_search(search: Search) -> None:
    """How many trials will reach each rung, and the cost of them all."""
    _, plan = search.configuration(searches.constants(search.sweep))
    evaluations, images = searches.evaluations_of(plan), plan.last_step * plan.global_batch
    at = [*search.rungs.iterations, evaluations]
    before, total, count = 0, 0.0, 0
    print(f"{search.cap} trials, {search.draws} draws, {search.rungs}; {search.metric}")
    for rung, evaluation in enumerate(at):
        count = search.cap // search.rungs.eta**rung if search.rungs.rule == "asha" else search.cap
        total += count * (evaluation - before) / evaluations
        before = evaluation
        name = "full length" if rung == search.rungs.last else f"rung {rung}"
        print(f"  {name}: after {evaluation} of {evaluations} evaluations; {count} trials")
    if count == 0:
        least = search.rungs.eta**search.rungs.last
        print(f"  note: of fewer than {least} trials none may reach its full length")
    least = "at most" if search.rungs.rule == "median" else "about"
    rate = hours_per_image(Path(search.directory))
    print(
        f"{least} {total:.1f} whole trainings' images, {total * images / 1e6:.3g} millions; "
        f"{_estimate(total * images * (rate or 0.0), rate)}"
    )


def images_of(config: Config, workers: int) -> int:
    betons = manifest.load(Path(config.data.dir), config.data.dataset)
    plan = schedule.plan(config, workers, betons.splits["train"].samples)
    return plan.last_step * plan.global_batch


def hours_per_image(directory: Path) -> float | None:
    """Of the runs that are in the directory, also unfinished ones: the median; with start-up and
    evaluations. None where there is none."""
    rates = []
    for path in directory.glob("*/config.yaml"):
        done = read_summary(path.parent)
        if done:
            rates.append(sum(done["seconds"].values()) / 3600 / done["samples"])
        else:
            timed = [record for record in read_metrics(path.parent) if "hours" in record]
            rates += [record["hours"] / record["samples"] for record in timed[-1:]]
    return statistics.median(rates) if rates else None


def _done(path: Path) -> float:
    """Images that it was trained on; infinitely many where it is complete."""
    if (path / "summary.json").exists():
        return math.inf
    counted = [record["samples"] for record in read_metrics(path) if "samples" in record]
    return counted[-1] if counted else 0


def _estimate(hours: float, rate: float | None) -> str:
    if rate is None:
        return "hours: not known before a run of this directory has been timed"
    return (
        f"about {hours:.2f} machine hours to go, at {1 / rate / 3600:,.0f} images/s as timed here"
    )
