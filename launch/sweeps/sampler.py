"""Which values a new trial of a search gets: optuna's samplers, given what is known so far. A draw
is a function of the seed, the trial's number and those results."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import optuna
from optuna.trial import TrialState, create_trial

from dist_resnet.reports.search import Trial, require_optuna
from launch.sweeps import space
from launch.sweeps.definition import Sweep

require_optuna()  # here for its settings: no line for every trial
Draws = Literal["random", "tpe"]
Drawn = tuple[dict[str, Any], dict[str, Any], dict[str, Any]]


class Suggestion:
    """The value of one parameter, as space.Draw, suggested to an optuna trial under its name."""

    def __init__(self, trial: optuna.Trial, name: str) -> None:
        self.trial, self.name = trial, name

    def uniform(self, low: float, high: float) -> float:
        return self.trial.suggest_float(self.name, low, high)

    def log_uniform(self, low: float, high: float) -> float:
        return self.trial.suggest_float(self.name, low, high, log=True)

    def randint(self, low: int, high: int) -> int:
        return self.trial.suggest_int(self.name, low, high)

    def gauss(self, mu: float, sigma: float) -> float:
        raise ValueError(
            f"parameter {self.name}: a search needs bounds: use uniform or log_uniform_values in "
            "place of normal or log_normal"
        )

    def choices(self, values: Sequence[Any], weights: Sequence[float] | None) -> Sequence[Any]:
        if weights is not None:
            raise ValueError(
                f"parameter {self.name}: probabilities = {list(weights)}: a search learns which "
                "values are good; leave them out"
            )
        names: list[Any] = [
            v if isinstance(v, (bool, int, float, str)) else space.as_text(v) for v in values
        ]
        return [values[names.index(self.trial.suggest_categorical(self.name, names))]]


def draw(
    sweep: Sweep, draws: Draws, seed: int, number: int, known: Sequence[Trial], maximize: bool
) -> Drawn:
    """Values (dotted key -> value) of trial `number`; parameters and distributions by optuna's
    names."""
    own = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    sampler: optuna.samplers.BaseSampler = (
        optuna.samplers.TPESampler(seed=own, constant_liar=True)
        if draws == "tpe"
        else optuna.samplers.RandomSampler(seed=own)
    )
    study = optuna.create_study(direction="maximize" if maximize else "minimize", sampler=sampler)
    if draws == "tpe":
        study.add_trials([_as_seen(trial) for trial in known if trial.state != "failed"])
    trial = study.ask()
    values = space.point(sweep.parameters, sweep.conditions, lambda name: Suggestion(trial, name))
    return values, trial.params, trial.distributions


def _as_seen(trial: Trial) -> optuna.trial.FrozenTrial:
    """As TPE takes it: whole trials first, then those stopped at a rung, the higher rung before the
    lower; a trial without a result counts as a bad one while it runs, so that its neighbourhood is
    left alone, and so does one that was stopped without any."""
    if trial.state == "complete":
        state = TrialState.COMPLETE
    elif trial.reports or trial.state == "stopped":
        state = TrialState.PRUNED
    else:
        state = TrialState.RUNNING
    return create_trial(
        state=state,
        value=trial.reports[-1].value if state == TrialState.COMPLETE else None,
        params=trial.params,
        distributions=trial.distributions,
        intermediate_values={report.rung: report.value for report in trial.reports},
    )
