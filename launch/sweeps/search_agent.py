"""An agent of a search: takes a trial, trains it to its next rung, reports; again and again. It may
be ended at any time, and there may be any number of them."""

import math
import multiprocessing
import os
import signal
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from submitit import JobEnvironment
from submitit.helpers import DelayedSubmission

from dist_resnet.config import Config
from dist_resnet.config.schedule import Plan
from dist_resnet.reports.search import JOURNAL, Report, Trial
from dist_resnet.runtime import lock
from dist_resnet.runtime.signals import (
    COMPLETED,
    FAILED,
    PAUSED,
    PREEMPTED,
    TERMINATED,
    Diverged,
    StopSignal,
)
from dist_resnet.tracking.tracker import read_metrics
from launch.executors import local, run_dir
from launch.executors.resources import check
from launch.jobs.task import leave
from launch.sweeps.heartbeat import Heartbeat
from launch.sweeps.search import Search
from launch.sweeps.study import Study

ORPHANS_SECONDS = 15  # trainings that were killed with their agent may be slow to end


@dataclass(frozen=True)
class SearchAgentTask:
    """Works until nothing is left to do. max_faults: ends without a word after which a trial is
    given up, and starts of the agent's own job after such; max_restarts: starts of it after time
    limits."""

    search: Search
    max_faults: int = 5
    max_restarts: int = 1000

    def __call__(self) -> str:
        stop = StopSignal()
        if "SUBMITIT_FOLDER" in os.environ:
            JobEnvironment().paths.result_pickle.unlink(missing_ok=True)  # an earlier start's
        with Heartbeat(Path(self.search.directory), own_name()) as heartbeat:
            outcome = self.work(Study(self.search, heartbeat), stop)
        if stop.requested == PREEMPTED and callable(stop.before[signal.SIGUSR2]):
            leave(stop, JobEnvironment())
        return outcome

    def progress(self) -> str:
        """So many results are in the journal."""
        journal = Path(self.search.directory) / JOURNAL
        return str(journal.read_bytes().count(b'"reports"') if journal.exists() else 0)

    def checkpoint(self) -> DelayedSubmission:
        return DelayedSubmission(self)

    def work(self, study: Study, stop: StopSignal) -> str:
        """Returns 'completed' where nothing is left for this agent, else 'preempted' or
        'terminated'."""
        while not stop.requested:
            trial = _next(study, stop)
            if trial is None:
                break
            while study.is_ours(trial):
                after = self._advance(study, trial, stop)
                if after is None:
                    return stop.requested or TERMINATED
                trial = after
        return stop.requested or COMPLETED

    def _advance(self, study: Study, trial: Trial, stop: StopSignal) -> Trial | None:
        """The trial at its next rung; None where the training was asked to leave before."""
        directory = Path(self.search.directory) / trial.name
        print(f"\n== {trial.name}, to rung {trial.target}: {directory}", flush=True)
        try:
            config, plan = self.search.configuration(trial.values)
        except ValueError as error:
            print(f"the configuration refuses it: {error}", flush=True)
            study.stop(trial, str(error), refused=True)
            return study.fresh(trial)
        self._require_able(study, trial, config, directory)
        try:
            if not lock.wait_until_free(directory, ORPHANS_SECONDS):
                print(f"{directory} is still in use: left for later", flush=True)
                study.release(trial)
            elif not self._train(directory, config, plan, trial, stop):
                study.release(trial)
                return None
            else:
                return study.report(trial, self._report(directory, plan, trial))
        except Diverged as error:
            print(f"{trial.name} is stopped: {error}", flush=True)
            study.stop(trial, str(error))
        except ValueError as error:  # what only a worker finds out: of the trial, or of this node
            if not study.has_results():
                study.note_fault(trial, str(error), self.max_faults)
                raise self._unable(study, error) from None
            print(f"{trial.name} is stopped: {error}", flush=True)
            study.stop(trial, str(error))
        except RuntimeError as error:
            print(f"{trial.name}: {error}", flush=True)
            study.note_fault(trial, str(error), self.max_faults)
        return study.fresh(trial)

    def _require_able(self, study: Study, trial: Trial, config: Config, directory: Path) -> None:
        """Raises RuntimeError where this node lacks the betons, or a disk to write to: it would go
        through all trials in no time."""
        try:
            check(config, self.search.workers)
            run_dir.create(directory, config)
        except ValueError as error:
            study.release(trial)
            raise self._unable(study, error) from None

    def _unable(self, study: Study, error: ValueError) -> RuntimeError:
        return RuntimeError(
            f"agent {study.agent} ends, and leaves its trial to others: {error}; mend that here, "
            "or leave this node out"
        )

    def _train(
        self, directory: Path, config: Config, plan: Plan, trial: Trial, stop: StopSignal
    ) -> bool:
        """Train to the trial's target; whether it is there."""
        _, step = self.search.rung(plan, trial.target)
        if steps_saved(directory, plan) >= step:
            return True  # by an agent that died before it could report
        stop.pause_at = step
        outcome = local.train(directory, self.search.workers, config.train.device, stop)
        return outcome in (PAUSED, COMPLETED)

    def _report(self, directory: Path, plan: Plan, trial: Trial) -> Report:
        iteration, step = self.search.rung(plan, trial.target)
        records = [record for record in read_metrics(directory) if record["step"] <= step]
        evaluated = [r for r in records if r["step"] == step and self.search.metric in r]
        if not evaluated:
            raise RuntimeError(f"{directory}/metrics.jsonl has no {self.search.metric} of {step}")
        value = evaluated[-1][self.search.metric]
        if value is None:
            raise Diverged(f"{self.search.metric} is not finite at step {step}")
        hours = max((r["hours"] for r in records if "hours" in r), default=0.0)
        return Report(
            rung=trial.target,
            iteration=iteration,
            step=step,
            value=value,
            hours=hours,
            images=step * plan.global_batch,
            time=time.time(),
        )


def side_by_side(task: SearchAgentTask, agents: int) -> str:
    """Several agents on this machine, each a process with its share of the GPUs. One that ends
    early leaves its trial to the others: 'failed' where all do."""
    workers = task.search.workers
    gpus = local.visible_gpus()
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_agent, args=(task, gpus[k * workers : (k + 1) * workers]))
        for k in range(agents)
    ]
    for process in processes:
        process.start()
    stop, told = StopSignal(), False
    while any(process.is_alive() for process in processes):
        try:
            time.sleep(0.2)
        except KeyboardInterrupt:
            stop.requested = TERMINATED
        if stop.requested and not told:
            told = True
            for process in processes:
                process.terminate()
    codes = [process.exitcode for process in processes if process.exitcode]
    if stop.requested or not codes:
        return stop.requested or COMPLETED
    listed = ", ".join(map(str, codes))
    print(
        f"\n{len(codes)} of {agents} agents ended before the search did (exit codes {listed}): see "
        "their messages above",
        flush=True,
    )
    return COMPLETED if len(codes) < agents else FAILED


def _agent(task: SearchAgentTask, gpus: list[str]) -> None:
    os.setpgid(0, 0)  # Ctrl-C is for the command, which tells the agents
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    try:
        task()
    except (ValueError, RuntimeError) as error:
        sys.exit(f"dist-resnet: error: {error}")


def own_name() -> str:
    """The same for all starts of an agent's own SLURM job, and for nobody else: of several that run
    side by side in somebody's allocation each has its own."""
    job = os.environ.get("SLURM_ARRAY_JOB_ID", os.environ.get("SLURM_JOB_ID"))
    if job and os.environ.get("SUBMITIT_EXECUTOR") == "slurm":
        return f"{job}_{os.environ.get('SLURM_ARRAY_TASK_ID', 0)}"
    return f"{socket.gethostname()}-{os.getpid()}"


def steps_saved(directory: Path, plan: Plan) -> float:
    """How far its last checkpoint is; the last step counts once summary.json is there."""
    if (directory / "summary.json").exists():
        return math.inf
    latest = directory / "checkpoints/LATEST"
    if not latest.exists():
        return 0
    step = int(latest.read_text().strip().removeprefix("step_").removesuffix(".pt"))
    return min(step, plan.last_step - 1)


def _next(study: Study, stop: StopSignal) -> Trial | None:
    """A trial. Without one, wait only until it is known that those who have one are alive: what
    their results make possible they do themselves."""
    began = time.monotonic()
    while not stop.requested:
        trial = study.next_trial()
        if trial or not study.may_be_dead(time.monotonic() - began):
            return trial
        time.sleep(1)
    return None
