"""When a trial of a search is stopped, and which goes on: ASHA (Li et al. 2020, "A System for
Massively Parallel Hyperparameter Tuning", algorithm 2) and the median rule (Golovin et al. 2017,
"Google Vizier", section 3.2.2)."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dist_resnet.config import require
from dist_resnet.reports.search import Trial

KEYS = {
    "hyperband": {"type", "min_iter", "max_iter", "s", "eta", "strict"},  # W&B's names
    "median": {"type", "min_iter", "interval"},
}
ETA = 3  # W&B's default
WITNESSES = 5  # other trials' results that the median rule wants before it stops one


@dataclass(frozen=True)
class Rungs:
    """iterations: evaluations after which a trial is at a rung; the last rung, after all of them,
    is its full length."""

    rule: Literal["none", "asha", "median"] = "none"
    iterations: tuple[int, ...] = ()
    eta: int = ETA

    @property
    def last(self) -> int:
        return len(self.iterations)

    def __str__(self) -> str:
        if self.rule == "none":
            return "every trial in full"
        after = ", ".join(map(str, self.iterations))
        what = f"the best 1/{self.eta} go on" if self.rule == "asha" else "worse than the median"
        return f"{self.rule} after {after} evaluations ({what})"


def of(early: Any, evaluations: int) -> Rungs:
    """Of a file's early_terminate, in W&B's terms: min_iter and eta, or max_iter, s and eta; for a
    training of so many evaluations. Raises ValueError."""
    if early is None:
        return Rungs()
    kind: str = early.get("type", "") if isinstance(early, dict) else str(early)
    require(kind in KEYS, "early_terminate: type", kind, f"must be one of {', '.join(KEYS)}")
    unknown = sorted(set(early) - KEYS[kind])
    names = ", ".join(sorted(KEYS[kind]))
    require(not unknown, "early_terminate", unknown, f"no such keys; {kind} has {names}")
    strict = early.get("strict", True)
    require(strict is True, "early_terminate: strict", strict, "ASHA is strict: leave it out")
    for key in set(early) & {"min_iter", "max_iter", "s", "eta", "interval"}:
        least = 2 if key == "eta" else 1
        fits = isinstance(early[key], int) and early[key] >= least
        name = f"early_terminate: {key}"
        require(fits, name, early[key], f"must be a whole number, at least {least}")
    iterations = _median(early, evaluations) if kind == "median" else _hyperband(early, evaluations)
    require(
        bool(iterations),
        "early_terminate",
        early,
        f"has no rung before the last of {evaluations} evaluations: evaluate more often "
        "(--train.evaluate_every), or lower min_iter",
    )
    rule: Literal["asha", "median"] = "median" if kind == "median" else "asha"
    return Rungs(rule, iterations, early.get("eta", ETA))


def _hyperband(early: dict[str, Any], evaluations: int) -> tuple[int, ...]:
    eta = early.get("eta", ETA)
    downwards = {"max_iter", "s"} <= early.keys()
    require(
        ("min_iter" in early) != downwards,
        "early_terminate",
        early,
        "needs min_iter, or max_iter and s",
    )
    if downwards:
        found = {early["max_iter"] // eta**k for k in range(1, early["s"] + 1)}
    else:
        found = {early["min_iter"] * eta**k for k in range(evaluations)}
    return tuple(sorted(n for n in found if 1 <= n < evaluations))


def _median(early: dict[str, Any], evaluations: int) -> tuple[int, ...]:
    return tuple(range(early.get("min_iter", 1), evaluations, early.get("interval", 1)))


def promotable(trials: Sequence[Trial], rungs: Rungs, maximize: bool) -> Trial | None:
    """The paused trial that goes on: of the highest rung that has one, the best among the best
    1/eta of all that have reached it. Of equal results the earlier trial's is the better."""
    for rung in range(rungs.last - 1, -1, -1):
        reached = [
            ((-report.value if maximize else report.value), trial.number, trial)
            for trial in trials
            if (report := trial.at(rung))
        ]
        best = sorted(reached)[: len(reached) // rungs.eta]
        paused = [trial for *_, trial in best if trial.state == "paused" and trial.target == rung]
        if paused:
            return paused[0]
    return None


def below_median(trial: Trial, trials: Sequence[Trial], maximize: bool) -> str | None:
    """Why the trial is stopped at the rung that it has reached, or None: its best value so far is
    worse than the median of the others' means so far."""
    sign = 1 if maximize else -1
    rung = trial.target
    means = [
        statistics.mean(sign * r.value for r in other.reports if r.rung <= rung)
        for other in trials
        if other.number != trial.number and other.at(rung)
    ]
    best = max(sign * report.value for report in trial.reports)
    if len(means) < WITNESSES or best >= statistics.median(means):
        return None
    median = sign * statistics.median(means)
    return (
        f"{sign * best:.4g} at rung {rung}, and the median of {len(means)} others is {median:.4g}"
    )
