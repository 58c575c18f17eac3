"""Reads the journal of a search (launch/sweeps/study.py writes it): its trials, and what is found
in them. No torch."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

JOURNAL = "search.journal"  # optuna's journal storage, in the sweep's directory
ENOUGH = 8  # results, to speak of importance


@dataclass(frozen=True)
class Report:
    """A result. rung: from 0; iteration: evaluations until then; hours, images: of training until
    then, over all starts of the run; time: seconds since 1970."""

    rung: int
    iteration: int
    step: int
    value: float
    hours: float
    images: int
    time: float


@dataclass(frozen=True)
class Trial:
    """state: running; open (nobody is at it, and it has a rung to reach); paused (at a rung);
    complete; stopped (for good, with the reason); failed."""

    number: int
    state: str
    values: dict[str, Any]  # dotted key -> value
    reports: tuple[Report, ...]
    target: int  # the rung that it is trained to, or has reached
    agent: str
    reason: str
    refused: bool  # by the configuration: never trained
    faults: int  # ends without a word
    params: dict[str, Any]  # what was drawn, by the sampler's names
    distributions: dict[str, Any]  # from which
    id: int  # in the journal

    @property
    def name(self) -> str:
        return f"trial_{self.number:03d}"

    def at(self, rung: int) -> Report | None:
        return next((r for r in self.reports if r.rung == rung), None)

    @property
    def last(self) -> Report | None:
        return self.reports[-1] if self.reports else None


@dataclass(frozen=True)
class Search:
    """path: its directory; kind: what it was searched with; maximize: whether a greater value is
    better."""

    path: Path
    kind: str
    metric: str
    maximize: bool
    trials: list[Trial]

    @property
    def name(self) -> str:
        return self.path.name

    def words(self) -> str:
        """What has come of it, in a line."""
        trained = [trial for trial in self.trials if trial.reports]
        rungs = range(self.of_last_rung() + 1)
        counts = [sum(trial.at(rung) is not None for trial in trained) for rung in rungs]
        points = self.best_so_far()
        if not points:
            return f"search {self.name} ({self.kind}): no results yet"
        pick = max if self.maximize else min
        best = pick(
            ((report.value, -trial.number) for trial in trained for report in trial.reports),
        )
        refused = sum(trial.refused for trial in self.trials)
        running = sum(trial.state == "running" for trial in self.trials)
        ended = sum(trial.state in ("stopped", "failed") for trial in self.trials) - refused
        also = {"running": running, "ended for good": ended, "refused": refused}
        return (
            f"search {self.name} ({self.kind}): {len(trained)} trials; by rung "
            f"{', '.join(map(str, counts))}; {points[-1][0]:.2f} machine hours; best "
            f"{self.metric} {best[0]:.4f} (trial_{-best[1]:03d})"
            + "".join(f"; {count} {what}" for what, count in also.items() if count)
        )

    def best_so_far(self) -> list[tuple[float, float, int]]:
        """(machine hours, best value until then, images until then), a point for each result in
        the order in which they came; hours and images of all trials together."""
        results = sorted(
            ((report, trial) for trial in self.trials for report in trial.reports),
            key=lambda pair: pair[0].time,
        )
        spent: dict[int, Report] = {}
        points: list[tuple[float, float, int]] = []
        for report, trial in results:
            spent[trial.number] = report
            best = points[-1][1] if points else report.value
            better = max if self.maximize else min
            hours, images = (
                sum(getattr(r, what) for r in spent.values()) for what in ("hours", "images")
            )
            points.append((hours, better(best, report.value), images))
        return points

    def of_last_rung(self) -> int:
        return max((r.rung for trial in self.trials for r in trial.reports), default=0)

    def importance(self) -> dict[str, float]:
        """Parameter -> its share, by PED-ANOVA (Watanabe, Bansal and Hutter 2023) over the results
        of the first rung, which all trials have: those of later ones are of trials that are alike.
        Empty where there are too few, or fewer than two parameters that all trials draw."""
        reached = [trial for trial in self.trials if trial.at(0)]
        return _importance(reached, self.maximize) if len(reached) >= ENOUGH else {}


def _importance(trials: Sequence[Trial], maximize: bool) -> dict[str, float]:
    optuna = require_optuna()
    shared = set.intersection(*(set(trial.params) for trial in trials))
    names = sorted(n for n in shared if len({str(trial.params[n]) for trial in trials}) > 1)
    if len(names) < 2:
        return {}
    study = optuna.create_study(direction="maximize" if maximize else "minimize")
    for trial in trials:
        report = trial.at(0)
        assert report is not None
        study.add_trial(
            optuna.trial.create_trial(
                value=report.value,
                params={name: trial.params[name] for name in names},
                distributions={name: trial.distributions[name] for name in names},
            )
        )
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))


def read(directory: Path) -> Search | None:
    """None where the directory holds no search. Raises RuntimeError where optuna is missing."""
    if not (directory / JOURNAL).exists():
        return None
    optuna = require_optuna()
    backend = optuna.storages.journal.JournalFileBackend(str((directory / JOURNAL).resolve()))
    storage = optuna.storages.JournalStorage(backend)
    begun = [s for s in storage.get_all_studies() if "maximize" in s.user_attrs]
    if not begun:
        return None  # its first agent is about to
    (study,) = begun
    trials = storage.get_all_trials(study._study_id, deepcopy=False)
    about = study.user_attrs
    return Search(
        directory,
        about["kind"],
        about["metric"],
        about["maximize"],
        [as_trial(trial) for trial in trials],
    )


def as_trial(frozen: Any) -> Trial:
    """Of optuna's."""
    attributes = frozen.user_attrs
    reports = tuple(Report(**report) for report in attributes.get("reports", []))
    target = attributes["target"]
    is_there = bool(reports) and reports[-1].rung == target
    states = {
        "RUNNING": "running",
        "WAITING": "paused" if is_there else "open",
        "COMPLETE": "complete",
        "PRUNED": "stopped",
        "FAIL": "failed",
    }
    return Trial(
        number=frozen.number,
        state=states[frozen.state.name],
        values=attributes["values"],
        reports=reports,
        target=target,
        agent=attributes.get("agent", ""),
        reason=attributes.get("reason", ""),
        refused=attributes.get("refused", False),
        faults=attributes.get("faults", 0),
        params=frozen.params,
        distributions=frozen.distributions,
        id=frozen._trial_id,
    )


def require_optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise RuntimeError(
            "a search needs optuna: pip install optuna (or 'dist-resnet[search]')"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    return optuna
