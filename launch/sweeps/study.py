"""The study of a search: which trials there are, what came of them, and who is at which, in
optuna's journal on the shared disk. All agents write it; each decision is made under one lock, by
what the journal says then."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import TrialState, create_trial

from dist_resnet.reports.search import JOURNAL, Report, Trial, as_trial
from launch.sweeps import rungs, sampler
from launch.sweeps.heartbeat import Heartbeat
from launch.sweeps.search import Search

REFUSALS = 100  # draws in a row that the configuration may refuse


class Lock(JournalFileSymlinkLock):
    """Optuna's lock for network file systems: a symbolic link, taken from one who has died with it
    after 30 seconds. The path must be absolute, or the link dangles and is never taken.

    Whoever gets it cuts off the half line that a writer may have left who died."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path.resolve()))
        self.path = path

    def acquire(self) -> bool:
        super().acquire()
        if self.path.exists():
            _cut_half_line(self.path)
        return True


class Study:
    """As one agent has it."""

    def __init__(self, search: Search, heartbeat: Heartbeat) -> None:
        self.search, self.heartbeat, self.agent = search, heartbeat, heartbeat.agent
        directory = Path(search.directory).resolve()
        self.path = directory / JOURNAL
        self._decisions = directory / "decisions"
        self._decisions.touch()  # what the lock's link points to
        lock = Lock(self.path)
        self._storage = JournalStorage(JournalFileBackend(str(self.path), lock_obj=lock))
        self._study = self._create()

    def _create(self) -> optuna.Study:
        search = self.search
        with self._decision():
            study = optuna.create_study(
                storage=self._storage,
                study_name=search.sweep.name,
                direction="maximize" if search.maximize else "minimize",
                load_if_exists=True,
            )
            if not study.user_attrs:
                study.set_user_attr("kind", search.kind)
                study.set_user_attr("metric", search.metric)
                study.set_user_attr("maximize", search.maximize)
        return study

    def trials(self) -> list[Trial]:
        return [as_trial(trial) for trial in self._study.get_trials(deepcopy=False)]

    def try_a_draw(self) -> None:
        """Raises ValueError for a space that cannot be searched."""
        search = self.search
        sampler.draw(search.sweep, "random", search.seed, 0, [], search.maximize)

    def next_trial(self) -> Trial | None:
        """A trial for this agent, to be trained to its target: one that it was at before it was
        ended, one that nobody is at, one of an agent that is dead, one that is promoted, a new one;
        None where there is none of these now."""
        with self._decision():
            trials = self.trials()
            running = [trial for trial in trials if trial.state == "running"]
            for trial in running:
                if trial.agent == self.agent or self.heartbeat.is_dead(trial.agent):
                    return self._take_over(trial)
            for trial in trials:
                if trial.state == "open":
                    return self._claim(trial, trial.target)
            found = rungs.promotable(trials, self.search.rungs, self.search.maximize)
            if found:
                return self._claim(found, found.target + 1)
            return self._new(trials)

    def report(self, trial: Trial, report: Report) -> Trial:
        """Note the result at trial.target. It may be there already, from an agent that died then.
        Returns the trial as it is now: still running where it goes on at once."""
        with self._decision():
            now = self.fresh(trial)
            if not self._is_ours(now):
                return now  # taken by another, who thought us dead
            if not now.at(report.rung):
                reports = [*now.reports, report]
                self._set(now, reports=[asdict(r) for r in reports])
                self._storage.set_trial_intermediate_value(now.id, report.iteration, report.value)
            self._settle(self.fresh(trial))
            return self.fresh(trial)

    def stop(self, trial: Trial, reason: str, state: TrialState = TrialState.PRUNED) -> None:
        """For good."""
        with self._decision():
            if self._is_ours(self.fresh(trial)):
                self._set(trial, reason=reason)
                self._storage.set_trial_state_values(trial.id, state)

    def release(self, trial: Trial) -> None:
        """Leave it to whoever asks next, as far as it is."""
        with self._decision():
            if self._is_ours(self.fresh(trial)):
                self._storage.set_trial_state_values(trial.id, TrialState.WAITING)

    def note_fault(self, trial: Trial, reason: str, limit: int) -> None:
        """Its training ended without a word: it is tried again, up to a limit."""
        if trial.faults >= limit:
            self.stop(trial, f"{trial.faults + 1} such ends: {reason}", TrialState.FAIL)
            return
        self._set(trial, faults=trial.faults + 1)
        self.release(trial)

    def may_be_dead(self, idle_s: float) -> bool:
        """Whether an agent that is at a trial has been silent for so long."""
        others = {trial.agent for trial in self.trials() if trial.state == "running"}
        return any(self.heartbeat.seconds_since(agent) > idle_s for agent in others)

    @contextlib.contextmanager
    def _decision(self) -> Iterator[None]:
        lock = Lock(self._decisions)
        lock.acquire()
        try:
            yield
        finally:
            with contextlib.suppress(RuntimeError):  # taken from us, who were silent too long
                lock.release()

    def _new(self, trials: Sequence[Trial]) -> Trial | None:
        search, known = self.search, list(trials)
        if sum(not trial.refused for trial in known) >= search.cap:
            return None
        for _ in range(REFUSALS):
            number = len(known)
            drawn = sampler.draw(
                search.sweep, search.draws, search.seed, number, known, search.maximize
            )
            try:
                search.configuration(drawn[0])
            except ValueError as error:
                known.append(self._add(drawn, str(error)))
            else:
                return self._add(drawn)
        raise ValueError(
            f"{REFUSALS} draws in a row are refused by the configuration, the last because "
            f"{known[-1].reason}"
        )

    def _add(self, drawn: sampler.Drawn, refused: str | None = None) -> Trial:
        values, params, distributions = drawn
        attributes = {"values": values, "target": 0, "agent": self.agent}
        if refused:
            attributes |= {"reason": refused, "refused": True}
        self._study.add_trial(
            create_trial(
                state=TrialState.PRUNED if refused else TrialState.RUNNING,
                params=params,
                distributions=distributions,
                user_attrs=attributes,
            )
        )
        return self.trials()[-1]

    def _claim(self, trial: Trial, target: int) -> Trial:
        self._set(trial, target=target)
        self._set(trial, agent=self.agent)
        assert self._storage.set_trial_state_values(trial.id, TrialState.RUNNING)
        return self.fresh(trial)

    def _take_over(self, trial: Trial) -> Trial:
        if trial.agent != self.agent:
            self._set(trial, agent=self.agent)
        return self.fresh(trial)

    def _settle(self, trial: Trial) -> None:
        """What follows from the result at its target."""
        last = trial.last
        assert last is not None and last.rung == trial.target
        if trial.target == self.search.rungs.last:
            values = [last.value]
            self._storage.set_trial_state_values(trial.id, TrialState.COMPLETE, values)
        elif self.search.rungs.rule == "asha":
            self._storage.set_trial_state_values(trial.id, TrialState.WAITING)
        else:
            reason = rungs.below_median(trial, self.trials(), self.search.maximize)
            if reason:
                self._set(trial, reason=reason)
                self._storage.set_trial_state_values(trial.id, TrialState.PRUNED)
            else:
                self._set(trial, target=trial.target + 1)

    def fresh(self, trial: Trial) -> Trial:
        return as_trial(self._storage.get_trial(trial.id))

    def _is_ours(self, trial: Trial) -> bool:
        return trial.state == "running" and trial.agent == self.agent

    def _set(self, trial: Trial, **attributes: Any) -> None:
        for key, value in attributes.items():
            self._storage.set_trial_user_attr(trial.id, key, value)


def _cut_half_line(path: Path) -> None:
    with open(path, "rb+") as file:
        size = file.seek(0, os.SEEK_END)
        if size == 0:
            return
        file.seek(size - 1)
        if file.read(1) != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
