"""W&B sweeps: created on its server, run by `wandb agent` processes, each of which outlives
preemption and kills."""

import ast
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from submitit import JobEnvironment
from submitit.helpers import DelayedSubmission

from dist_resnet.config import Config, config_file
from dist_resnet.runtime import lock
from dist_resnet.runtime.signals import COMPLETED, PREEMPTED, StopSignal
from launch.jobs.task import leave
from launch.sweeps import space

ORPHANS_SECONDS = 15  # those that were killed with their agent may be slow to end

# where wandb's helper process listens, which ends with the process that started it
SERVICE = "WANDB_SERVICE"
AGENT = "DIST_RESNET_AGENT"  # the name of the agent, in the environment of what it runs


def create(content: dict[str, Any], directory: Path, project: str, entity: str | None) -> str:
    """[entity/]project/id of the sweep, which is made on W&B's server where the directory has none
    yet.

    Raises ValueError where the directory has another sweep, RuntimeError where the server cannot be
    reached or refuses."""
    path, kept, text = directory / "sweep_id", directory / "sweep.yaml", yaml.safe_dump(content)
    if path.exists() and kept.read_text() != text:
        raise ValueError(
            f"{directory} has a sweep on W&B's server already, made from another file or other "
            f"options (see {kept}): give another --sweep-dir"
        )
    if not path.exists():
        import wandb

        project, entity = content.get("project", project), content.get("entity", entity)
        try:
            sweep_id = wandb.sweep(content, project=project, entity=entity)
        except Exception as error:  # wandb raises its own kinds, requests' and more
            raise RuntimeError(
                f"--wandb: cannot create the sweep ({type(error).__name__}: {error}); is "
                "WANDB_API_KEY set, and the server "
                "reached from here? Without --wandb the sweep needs no server"
            ) from None
        finally:
            wandb.teardown()
            os.environ.pop(SERVICE, None)
        directory.mkdir(parents=True, exist_ok=True)
        kept.write_text(text)
        path.write_text("/".join(filter(None, (entity, project, sweep_id))) + "\n")
    return path.read_text().strip()


def is_one() -> bool:
    """Whether this process runs in the name of an agent."""
    return AGENT in os.environ


def configuration(run_dir: Path, base: Path, words: Sequence[str]) -> Config:
    """Of the run that an agent was given. words: what its command line says besides `base`.

    W&B's server gives a preempted run out again with its whole configuration and what it keeps
    under `_wandb`, in dicts: RUN_DIR knows better; where that is not here, they are unfolded."""
    if (run_dir / "config.yaml").exists():
        return config_file.load(run_dir / "config.yaml")
    unfolded: list[str] = []
    for word in words:
        key, is_set, text = word.partition("=")
        if key == "--_wandb":
            continue
        value = _parsed(text) if is_set else None
        if isinstance(value, dict):
            pairs = ((f"{key}.{name}", inner) for name, inner in value.items())
            unfolded += [f"{name}={space.as_text(inner)}" for name, inner in pairs]
        else:
            unfolded.append(word)
    return config_file.load(base, unfolded)


def _parsed(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return None


@contextmanager
def claimed(run_dir: Path) -> Iterator[None]:
    """Meanwhile run_dir says which agent works on it, where this process runs in the name of one.
    What is left of that is an agent's that was killed."""
    path = run_dir / "agent"
    if is_one():
        path.write_text(os.environ[AGENT])
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


@dataclass(frozen=True)
class AgentTask:
    """Runs `wandb agent` until the sweep has no more runs; picks up first what an earlier start of
    it has left.

    sweep: [entity/]project/id; directory: of the sweep, with a RUN_DIR per run; agent: this agent's
    name; workers: of a run."""

    sweep: str
    directory: str
    agent: str
    workers: int
    count: int | None = None
    max_restarts: int = 1000
    max_faults: int = 5

    def __call__(self) -> str:
        stop = StopSignal()
        if "SUBMITIT_FOLDER" in os.environ:
            JobEnvironment().paths.result_pickle.unlink(missing_ok=True)  # an earlier start's
        for command, environment in self.commands():
            code = self._run(command, {**os.environ, AGENT: self.agent, **environment}, stop)
            if stop.requested:
                break
            if code and "WANDB_RUN_ID" in environment:
                print(f"agent {self.agent}: that run failed; going on", flush=True)
            elif code:
                raise RuntimeError(
                    f"agent {self.agent}: {shlex.join(command)} ended with exit code {code}; its "
                    "output is above"
                )
        if stop.requested == PREEMPTED and callable(stop.before[signal.SIGUSR2]):
            leave(stop, JobEnvironment())
        return stop.requested or COMPLETED

    def progress(self) -> str:
        """So many of the sweep's runs are complete."""
        return str(len(list(Path(self.directory).glob("*/summary.json"))))

    def checkpoint(self) -> DelayedSubmission:
        return DelayedSubmission(self)

    def commands(self) -> Iterator[tuple[list[str], dict[str, str]]]:
        """(command, environment) of each run left over, then of the agent."""
        *owner, sweep_id = self.sweep.split("/")
        names = dict(zip(("WANDB_PROJECT", "WANDB_ENTITY"), reversed(owner)))
        for run_dir in self.left_over():
            yield (
                [
                    sys.executable,
                    "-m",
                    "launch",
                    "train",
                    str(run_dir / "config.yaml"),
                    "--run-dir",
                    str(run_dir),
                    "--workers-per-node",
                    str(self.workers),
                ],
                {"WANDB_RUN_ID": run_dir.name, "WANDB_SWEEP_ID": sweep_id, **names},
            )
        count = ["--count", str(self.count)] if self.count else []
        yield [sys.executable, "-m", "wandb", "agent", "--forward-signals", *count, self.sweep], {}

    def left_over(self) -> list[Path]:
        """RUN_DIRs that this agent was working on when it was ended; neither a run that the server
        has stopped is one, nor one at which an agent of the same name, from an earlier submission,
        is still at work."""
        noted = self._note().read_text().split("\n") if self._note().exists() else []
        self._note().unlink(missing_ok=True)
        claimed = [
            p.parent for p in Path(self.directory).glob("*/agent") if p.read_text() == self.agent
        ]
        found = sorted({*claimed, *(Path(line) for line in noted if line)})
        left = [
            d
            for d in found
            if (d / "config.yaml").exists()
            and not (d / "summary.json").exists()
            and lock.wait_until_free(d, ORPHANS_SECONDS)
        ]
        for run_dir in left:
            (run_dir / "agent").write_text(self.agent)
        return left

    def _run(self, command: list[str], environment: dict[str, str], stop: StopSignal) -> int:
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)
        print(f"agent {self.agent}: {shlex.join(command)}", flush=True)
        told = False
        while process.poll() is None:
            if stop.requested and not told:
                claimed = [
                    str(p.parent)
                    for p in Path(self.directory).glob("*/agent")
                    if p.read_text() == self.agent
                ]
                self._note().write_text("\n".join(claimed))
                process.send_signal(
                    signal.SIGTERM
                )  # the agent hands it on; the training saves and leaves
                told = True
            time.sleep(0.2)
        return process.returncode

    def _note(self) -> Path:
        return Path(self.directory) / f"agent-{self.agent}.left"
