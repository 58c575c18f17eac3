"""Worker processes that stay, forked from one that has imported torch: every training of a test
takes its steps and little more. They run dist_resnet.worker as those of a launcher do."""

import contextlib
import gc
import io
import multiprocessing
import os
import signal
import socket
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from dist_resnet import worker
from dist_resnet.config import config_file
from launch.executors import run_dir

THREADS = 1  # of each worker


class WorkerPool:
    def __init__(self, allow: Callable[[int], None] = lambda size: None) -> None:
        """allow: skips the test that wants too large a world."""
        self._allow = allow
        self._workers: list[tuple[multiprocessing.Process, Connection]] = []
        self.output = ""  # what rank 0 has printed during the last call

    def train(self, config: Path, directory: Path, *overrides: object, size: int = 1) -> Path:
        """Train to the end, or go on with that; returns the directory. Raises RuntimeError with the
        tracebacks of those workers that failed."""
        self.make(config, directory, *overrides)
        assert self.call(worker.main, str(directory), size=size) == ["completed"] * size
        return directory

    def train_until(
        self,
        config: Path,
        directory: Path,
        reached: Callable[[], None],
        *overrides: object,
        size: int,
    ) -> None:
        """Train until `reached` returns; then all workers are preempted."""
        self.make(config, directory, *overrides)
        self._begin(worker.main, (str(directory),), size)
        reached()
        for process, _ in self._workers[:size]:
            os.kill(process.pid or 0, signal.SIGUSR2)
        assert self._results(size) == ["preempted"] * size

    def make(self, config: Path, directory: Path, *overrides: object) -> None:
        words = [str(word) for word in overrides]
        run_dir.create(directory, config_file.load(config, words))

    def call(self, function: Callable, *arguments: Any, size: int = 1) -> list[Any]:
        """What the function returns in each worker of a world of that size."""
        self._begin(function, arguments, size)
        return self._results(size)

    def close(self) -> None:
        for process, _ in self._workers:
            process.kill()
            process.join()
        self._workers.clear()

    def _begin(self, function: Callable, arguments: tuple, size: int) -> None:
        self._allow(size)
        # importing FFCV asks for CUDA, which then cannot be had in a fork
        context = multiprocessing.get_context(
            "spawn" if torch.cuda.is_available() else "forkserver"
        )
        context.set_forkserver_preload(
            ["dist_resnet.worker", "dist_resnet.reports.figures", "torch._dynamo"]
        )
        while len(self._workers) < size:
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            self._workers.append((process, ours))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        for rank, (_, pipe) in enumerate(self._workers[:size]):
            world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
            world |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}
            pipe.send(({k: str(v) for k, v in world.items()}, function, arguments))

    def _results(self, size: int) -> list[Any]:
        answers = []
        for _, pipe in self._workers[:size]:
            if not pipe.poll(300):
                self.close()
                raise RuntimeError("a worker has not answered for 300 s")
            answers.append(pipe.recv())
        self.output = answers[0][2]
        failed = [text for is_result, text, _ in answers if not is_result]
        if failed:
            self.close()
            raise RuntimeError("\n".join(failed))
        return [result for _, result, _ in answers]


def _serve(pipe: Connection) -> None:
    while True:
        environment, function, arguments = pipe.recv()
        gc.freeze()  # what is imported and compiled: collections would visit it, and copy its pages
        os.environ.update(environment)
        torch.set_num_threads(THREADS)
        said = io.StringIO()
        try:
            with contextlib.redirect_stdout(said):
                result = function(*arguments)
            pipe.send((True, result, said.getvalue()))
        except BaseException:
            pipe.send((False, traceback.format_exc(), said.getvalue()))
