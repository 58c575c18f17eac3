"""A terminal that is closed, a reader that goes away: nothing is lost, and nothing ends that nobody
asked to end."""

import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios

import pytest
from conftest import wait_for_step

from dist_resnet.runtime import terminal
from dist_resnet.tracking import starts

pytestmark = pytest.mark.slow
LONG = ("--schedule.steps", "4000")


@pytest.fixture
def start(cli, config_path, tmp_path):
    """Two workers, on whatever takes their output."""

    def begin(*words, **how):
        command = [sys.executable, "-m", "launch", "train", config_path, "--run-dir", "run"]
        command += ["--workers-per-node", "2", *words]
        process = subprocess.Popen(command, cwd=tmp_path, env=cli.environment, **how)
        wait_for_step(tmp_path / "run", 2, process)
        return process

    return begin


def saved(run_dir):
    """(how the last start ended, at which step; the last checkpoint)."""
    last = starts.read(run_dir)[-1]
    return last["outcome"], last["step"], (run_dir / "checkpoints/LATEST").read_text().strip()


def test_a_closed_terminal_lets_the_workers_save(start, tmp_path):
    ours, theirs = pty.openpty()
    process = start(
        *LONG,
        **dict.fromkeys(("stdin", "stdout", "stderr"), theirs),
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(theirs)
    os.close(ours)  # SIGHUP for all of the session's foreground, and EIO for what they print
    process.wait(60)
    outcome, step, checkpoint = saved(tmp_path / "run")
    assert (outcome, checkpoint) == ("terminated", f"step_{step:08}.pt")


@pytest.mark.parametrize("asked, words", [(signal.SIGINT, LONG), (signal.SIGHUP, ())])
def test_without_a_reader_it_ends_only_where_it_is_asked_to(start, tmp_path, asked, words):
    """Ctrl-C in `train ... | tee log` ends tee too; a hangup under nohup is to end nothing."""
    process = start(
        *words,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    process.stdout.close()
    process.send_signal(asked)
    code = process.wait(60)
    outcome, step, checkpoint = saved(tmp_path / "run")
    assert checkpoint == f"step_{step:08}.pt"
    assert (outcome, code) == (("terminated", 130) if asked == signal.SIGINT else ("completed", 0))
    assert asked == signal.SIGINT or (tmp_path / "run/summary.json").exists()


def test_what_is_printed_in_a_signals_handler_amid_a_print_is_no_error(capfd):
    def raises(text):
        raise RuntimeError("reentrant call inside <_io.BufferedWriter name='<stdout>'>")

    with terminal.outlived():
        sys.stdout._stream.write, write = raises, sys.stdout._stream.write
        print("lost")
        sys.stdout._stream.write = write
        print("kept")
    assert capfd.readouterr().out == "kept\n"
