"""Runs a command with SIGUSR1 and SIGUSR2 blocked, so that one that comes while Python is still
starting waits for its handler.

    python -IS launch/jobs/hold_signals.py COMMAND ...

`env --block-signal=USR1,USR2` does the same from coreutils 8.31 on."""

import os
import signal
import sys

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGUSR2})
os.execvp(sys.argv[1], sys.argv[1:])
