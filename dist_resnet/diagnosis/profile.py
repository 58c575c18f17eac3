"""train.profile: a trace of some steps on rank 0, once they run as they will for the rest.

RUN_DIR/profile/ gets trace.json, for chrome://tracing or ui.perfetto.dev, and operations.txt, the
operations that took longest."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from dist_resnet.config import parse_length
from dist_resnet.training.loop import Training

SETTLE, WARM_UP = 10, 2  # steps before the trace: first without the profiler, then with it
TRACE, TABLE = "trace.json", "operations.txt"
ROWS = 30


class ProfiledUpdate:
    """An update that is also counted as a step of the profile."""

    def __init__(self, update: Callable[..., None], profiler: profile) -> None:
        self.update, self.profiler = update, profiler

    def __call__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        self.update(images, labels)
        self.profiler.step()


@contextmanager
def profiled(run: Training, run_dir: Path) -> Iterator[None]:
    """Meanwhile so many steps are traced as train.profile says, once in the life of a run."""
    length, folder = run.config.train.profile, run_dir / "profile"
    if length is None or not run.tracker.writes or (folder / TRACE).exists():
        yield
        return
    update, gpu = run.update, run.world.device.type == "cuda"

    def ready(profiler: profile) -> None:
        run.update = update
        folder.mkdir(exist_ok=True)
        profiler.export_chrome_trace(str(folder / TRACE))
        order = "self_cuda_time_total" if gpu else "self_cpu_time_total"
        table = profiler.key_averages().table(sort_by=order, row_limit=ROWS)
        (folder / TABLE).write_text(table + "\n")
        run.tracker.say(f"profile of {length}: {folder / TRACE} and {TABLE}")

    steps = int(parse_length("train.profile", length)[0])
    plan = schedule(skip_first=SETTLE, wait=0, warmup=WARM_UP, active=steps, repeat=1)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    with profile(activities=activities, schedule=plan, on_trace_ready=ready) as profiler:
        run.update = ProfiledUpdate(update, profiler)
        yield
