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
            if "maximize" not in study.user_attrs:
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
        ended, one of an agent that is dead, one that nobody is at, a new one; None where there is
        none of these now."""
        with self._decision():
            self._promote()  # what an agent may have left undone that died in its report
            trials = self.trials()
            running = [trial for trial in trials if trial.state == "running"]
            for trial in running:
                if trial.agent == self.agent or self.heartbeat.is_dead(trial.agent):
                    return self._take_over(trial)
            waiting = [trial for trial in trials if trial.state == "open"]
            if waiting:
                return self._claim(max(waiting, key=lambda t: (t.target, -t.number)))
            return self._new(trials)

    def report(self, trial: Trial, report: Report) -> Trial:
        """Note the result at trial.target; it may be there already, from an agent that died then.
        Which trials go on follows at once, so that it is a matter of the results and their order
        alone. Returns the trial as it is now: still running where it goes on here."""
        with self._decision():
            now = self.fresh(trial)
            if not self.is_ours(now):
                return now  # taken by another, who thought us dead
            if not now.at(report.rung):
                reports = [*now.reports, report]
                self._set(now, reports=[asdict(r) for r in reports])
                self._storage.set_trial_intermediate_value(now.id, report.iteration, report.value)
            self._settle(self.fresh(trial))
            return self.fresh(trial)

    def stop(self, trial: Trial, reason: str, *, refused: bool = False) -> None:
        """For good. One that the configuration refuses takes no place among those to be trained."""
        self._end(trial, TrialState.PRUNED, reason=reason, refused=refused)

    def release(self, trial: Trial) -> None:
        """Leave it to whoever asks next, as far as it is."""
        with self._decision():
            if self.is_ours(self.fresh(trial)):
                self._storage.set_trial_state_values(trial.id, TrialState.WAITING)

    def note_fault(self, trial: Trial, reason: str, limit: int) -> None:
        """Its training ended without a word: it is tried again, up to a limit."""
        if trial.faults >= limit:
            self._end(trial, TrialState.FAIL, reason=f"{trial.faults + 1} such ends: {reason}")
            return
        self._set(trial, faults=trial.faults + 1)
        self.release(trial)

    def is_ours(self, trial: Trial) -> bool:
        return trial.state == "running" and trial.agent == self.agent

    def has_results(self) -> bool:
        """Whether this agent has brought a trial to a rung."""
        return any(trial.agent == self.agent and trial.reports for trial in self.trials())

    def may_be_dead(self, idle_s: float) -> bool:
        """Whether an agent that is at a trial has been silent for so long."""
        others = {trial.agent for trial in self.trials() if trial.state == "running"}
        return any(self.heartbeat.seconds_since(agent) > idle_s for agent in others)

    @contextlib.contextmanager
    def _decision(self) -> Iterator[None]:
        lock = Lock(self._decisions)
        lock.acquire()
        self._decisions.touch()  # who waits takes it for dead where it stays as it is
        try:
            yield
        finally:
            with contextlib.suppress(RuntimeError):  # taken from us, who were silent too long
                lock.release()

    def _new(self, trials: Sequence[Trial]) -> Trial | None:
        search = self.search
        if sum(not trial.refused for trial in trials) >= search.cap:
            return None
        last = trials[-REFUSALS:]
        if len(last) == REFUSALS and all(trial.refused for trial in last):
            raise ValueError(
                f"{REFUSALS} draws in a row are refused by the configuration, the last because "
                f"{last[-1].reason}"
            )
        values, params, distributions = sampler.draw(
            search.sweep, search.draws, search.seed, len(trials), trials, search.maximize
        )
        self._study.add_trial(
            create_trial(
                state=TrialState.RUNNING,
                params=params,
                distributions=distributions,
                user_attrs={"values": values, "target": 0, "agent": self.agent},
            )
        )
        return [trial for trial in self.trials() if trial.agent == self.agent][-1]

    def _claim(self, trial: Trial) -> Trial:
        """Another's, after all, where the lock was taken from us: the journal has the last word."""
        if self._storage.set_trial_state_values(trial.id, TrialState.RUNNING):
            self._set(trial, agent=self.agent)
        return self.fresh(trial)

    def _end(self, trial: Trial, state: TrialState, **attributes: Any) -> None:
        with self._decision():
            if self.is_ours(self.fresh(trial)):
                self._set(trial, **attributes)
                self._storage.set_trial_state_values(trial.id, state)

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
            self._promote()
        else:
            reason = rungs.below_median(trial, self.trials(), self.search.maximize)
            if reason:
                self._set(trial, reason=reason)
                self._storage.set_trial_state_values(trial.id, TrialState.PRUNED)
            else:
                self._set(trial, target=trial.target + 1)

    def _promote(self) -> None:
        """Give a further rung to all who have deserved it."""
        search = self.search
        while found := rungs.promotable(self.trials(), search.rungs, search.maximize):
            self._set(found, target=found.target + 1)

    def fresh(self, trial: Trial) -> Trial:
        return as_trial(self._storage.get_trial(trial.id))

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
