"""`dist-resnet sweep --dry-run`: what would be trained, where, and how long it may take."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from dist_resnet.config import Config, schedule
from dist_resnet.data import manifest
from dist_resnet.reports.comparison import read_summary
from dist_resnet.tracking.tracker import read_metrics
from launch.sweeps import search as searches
from launch.sweeps.search import Search


def tell_runs(runs: Sequence[tuple[Path, Config]], directory: Path, workers: int) -> None:
    """A line per run: RUN_DIR, what is left of it, and hours."""
    timed, hours = timed_runs(directory), 0.0
    for path, config in runs:
        images = images_of(config, workers)
        left = max(0.0, images - _done(path))
        rate = hours_per_image(timed, config)
        hours += left * rate
        state = f"{left:,.0f} of {images:,} images left" if left else "complete"
        print(f"{path}  {state}" + (f", {left * rate:.2f} h" if rate and left else ""))
    print(f"{len(runs)} runs; {_estimate(hours, len(timed), 'to go')}")


def tell_search(search: Search) -> None:
    """How many trials will reach each rung, and the cost of them all."""
    config, plan = search.configuration(searches.constants(search.sweep))
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
        needed = search.rungs.eta**search.rungs.last
        print(f"  note: of fewer than {needed} trials none may reach its full length")
    how = "at most" if search.rungs.rule == "median" else "about"
    timed = timed_runs(Path(search.directory))
    hours = total * images * hours_per_image(timed, config)
    print(
        f"{how} {total:.1f} whole trainings' images, {total * images / 1e6:.3g} millions; "
        f"{_estimate(hours, len(timed), 'in all')}"
    )


def images_of(config: Config, workers: int) -> int:
    betons = manifest.load(Path(config.data.dir), config.data.dataset)
    plan = schedule.plan(config, workers, betons.splits["train"].samples)
    return plan.last_step * plan.global_batch


def timed_runs(directory: Path) -> list[tuple[Any, float]]:
    """(configuration of the network, hours an image) of the runs that are in the directory, also
    unfinished ones; with start-up and evaluations."""
    found = []
    for path in directory.glob("*/config.yaml"):
        network, done = yaml.safe_load(path.read_text())["model"], read_summary(path.parent)
        if done:
            found.append((network, sum(done["seconds"].values()) / 3600 / done["samples"]))
        else:
            records = [record for record in read_metrics(path.parent) if "hours" in record]
            found += [(network, record["hours"] / record["samples"]) for record in records[-1:]]
    return found


def hours_per_image(timed: Sequence[tuple[Any, float]], config: Config) -> float:
    """The median of runs with the same network, or of all where there is none; 0 of none at all."""
    same = [rate for network, rate in timed if network == config.to_dict()["model"]]
    return statistics.median(same or [rate for _, rate in timed] or [0.0])


def _done(path: Path) -> float:
    """Images that it was trained on; infinitely many where it is complete."""
    if (path / "summary.json").exists():
        return math.inf
    counted = [record["samples"] for record in read_metrics(path) if "samples" in record]
    return counted[-1] if counted else 0


def _estimate(hours: float, timed: int, what: str) -> str:
    if not timed:
        return "hours: not known before a run of this directory has been timed"
    return f"about {hours:.2f} machine hours {what}, as the {timed} runs went that were timed here"
