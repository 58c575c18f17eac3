"""Why a job's workers have ended, from what they have left: whose fault it is, and what is said."""

import os
import pickle

import pytest

from launch.executors import settle
from launch.executors.cluster import Cluster
from launch.jobs import verdict

CLOSED = "RuntimeError: [/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:5"
REFUSED = "RuntimeError: [/gloo/transport/tcp/pair.cc:144] connect: Connection refused"
TIMED_OUT = "torch.distributed.DistStoreError: wait timeout after 60000ms, keys: /seen/1"
NCCL = "torch.distributed.DistBackendError: NCCL error in: NCCLUtils.hpp:77, unhandled system error"
SOCKET = (
    NCCL
    + """ (run with NCCL_DEBUG=INFO for details), NCCL version 2.27.5
ncclSystemError: System call (e.g. socket, malloc) or external library call failed.
Last error:
socketStartConnect: Connect to 10.0.0.3<33861> failed : No route to host"""
)
ABORTED = "torch.distributed.DistBackendError: NCCL communicator was aborted on rank 1"
STALLED = "RuntimeError: the data loader has delivered nothing for 120 s (data.timeout_s)"
SLOW_DISK = "TimeoutError: [Errno 110] Connection timed out: 'metrics.jsonl'"
DISK = "OSError: [Errno 5] Input/output error: '/data/train.beton'"
ECC = "torch.AcceleratorError: CUDA error: uncorrectable ECC error encountered"
MISTAKE = "ValueError: optim.lr = -1: must be positive"
DIVERGED = "dist_resnet.runtime.signals.Diverged: the loss is not finite since step 3"
LOG = "submitit INFO (2026) - Starting with JobEnvironment(job_id=7)\n"


def ended(folder, *errors, logs=(), **circumstances):
    """errors: of ranks 0, 1, ...; None: it has left none. logs: what theirs hold of this start."""
    for rank, message in enumerate(errors):
        if message is not None:
            text = f"Traceback (most recent call last):\n  ...\n{message}\n"
            path = folder / f"7_{rank}_result.pkl"
            path.write_bytes(pickle.dumps(("error", text)))
            os.utime(path, (100 + rank, 100 + rank))
    for rank, text in enumerate(logs or [""] * len(errors)):
        (folder / f"7_{rank}_log.out").write_text(f"an earlier NCCL error\n{LOG}{text}\n")
    return verdict.first_failure(folder, "7", len(errors), **circumstances)


@pytest.mark.parametrize(
    "errors, stepped, rank, whose",
    [
        ((None, CLOSED), True, 0, "unknown"),
        ((None, ABORTED), True, 0, "unknown"),
        ((None, TIMED_OUT), True, 0, "unknown"),
        ((None, STALLED), True, 1, "user"),
        (
            (None, "TimeoutError: [Errno 110] Connection timed out: 'metrics.jsonl'"),
            True,
            1,
            "user",
        ),
        ((CLOSED, CLOSED), True, 1, "unknown"),
        ((None, TIMED_OUT), False, 1, "network"),  # srun has killed rank 0, which was waiting
        ((REFUSED, CLOSED), False, 0, "network"),
        ((CLOSED, NCCL), False, 1, "network"),
        ((SOCKET, CLOSED), False, 0, "network"),
        ((TIMED_OUT, TIMED_OUT), True, 0, "network"),
        ((None, CLOSED), False, 0, "unknown"),
        ((CLOSED, DISK), True, 1, "node"),
        ((ECC, CLOSED), True, 0, "node"),
        ((CLOSED, MISTAKE), False, 1, "user"),
    ],
)
def test_who_failed_first_and_whose_fault_it_is(tmp_path, errors, stepped, rank, whose):
    failure = ended(tmp_path, *errors, stepped=stepped)
    assert (failure.rank, failure.whose) == (rank, whose)
    assert failure.again == (whose != "user")


def test_what_the_rank_said_is_what_is_told_with_the_remedy(tmp_path):
    told = ended(tmp_path, None, REFUSED, stepped=False).tell(" on n2")
    assert "the worker of rank 1 on n2 could not reach the others: " in told and REFUSED in told
    for remedy in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "dist-resnet doctor"):
        assert remedy in told
    assert "ended without a word" not in told


def test_the_last_words_of_a_rank_that_was_aborted_are_told(tmp_path):
    watchdog = "[rank1]:[E] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=1)"
    failure = ended(tmp_path, None, None, logs=("", watchdog), stepped=False)
    assert (failure.rank, failure.whose) == (1, "network") and watchdog in failure.tell()
    oom = "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0"
    failure = ended(tmp_path, None, None, logs=(watchdog, oom))
    assert (failure.rank, failure.whose) == (1, "unknown") and oom in failure.tell()


def test_a_hang_is_told_as_one_whatever_its_ranks_said(tmp_path):
    failure = ended(tmp_path, TIMED_OUT, None, hang="nothing moved for 480 s")
    assert failure.rank == 1 and "ended without a word: nothing moved" in failure.tell()


def test_a_mistake_is_one_line_and_a_divergence_is_known_as_such(tmp_path):
    failure = ended(tmp_path, MISTAKE)
    assert failure.tell(" on n1").startswith(
        "optim.lr = -1: must be positive (the worker of rank 0"
    )
    assert not failure.diverged and ended(tmp_path, DIVERGED).diverged


def test_an_srun_that_has_started_nothing_is_no_dead_worker(tmp_path):
    failure = ended(tmp_path, None, None, began=2e10)  # the logs are an earlier start's
    assert failure.whose == "scheduler" and not failure.again
    assert "srun has started no worker" in failure.tell()


def test_faults_count_since_the_last_new_checkpoint_and_once_before_the_first_step(
    tmp_path, monkeypatch, capsys
):
    for name, value in {"JOB_ID": "7", "NTASKS": "1", "JOB_NODELIST": "n1"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    run_dir = tmp_path / "run"

    def start(number):
        """One whose only worker is killed."""
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(number))
        (run_dir / "logs/7_0_log.out").write_text(LOG)
        return settle.settle(run_dir / "logs")

    settle.stage(run_dir, Cluster(max_faults=2))
    assert [start(0), start(1)] == [settle.REQUEUE, 1]
    assert "2 such ends before the first step: not requeued again" in capsys.readouterr().out
    (run_dir / "metrics.jsonl").write_text('{"step": 2}\n')
    assert [start(2), start(3)] == [settle.REQUEUE] * 2
    (run_dir / "checkpoints").mkdir()
    for step in (4, 8):
        (run_dir / "checkpoints/LATEST").write_text(f"step_{step:08d}.pt\n")
        assert [start(step), start(step + 1)] == [settle.REQUEUE] * 2
    assert start(10) == 1
    assert "3 such ends since the last new checkpoint, and max_faults is 2" in (
        capsys.readouterr().out
    )


def test_a_step_that_slurm_cancels_by_itself_is_a_fault(tmp_path, monkeypatch):
    """As it does where its daemons answer late; the job runs on. A SIGTERM alone is a wish."""
    for name, value in {"JOB_ID": "7", "NTASKS": "1", "JOB_NODELIST": "n1"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    logs = settle.stage(tmp_path / "run", Cluster())
    (tmp_path / "run/metrics.jsonl").write_text('{"step": 2}\n')
    (logs / "7_0_result.pkl").write_bytes(pickle.dumps(("success", "terminated")))
    cancelled = "slurmstepd-n1: error: *** STEP 7.0 ON n1 CANCELLED AT 2026-11-28T14:39:55"
    (logs / "7_0_log.out").write_text(f"{cancelled} ***\n{LOG}")  # of the start before
    assert settle.settle(logs) == settle.TERMINATED
    (logs / "7_0_log.out").write_text(f"{LOG}{cancelled} DUE TO TIME LIMIT ***\n")
    assert settle.settle(logs) == settle.TERMINATED
    (logs / "7_0_log.out").write_text(f"{LOG}{cancelled} ***\n")
    assert settle.settle(logs) == settle.CANCELLED
