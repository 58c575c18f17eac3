"""Runs a command with SIGUSR2 blocked, so that one that comes while Python is still starting waits
for its handler.

    python -IS launch/hold_sigusr2.py COMMAND ...

`env --block-signal=USR2` does the same from coreutils 8.31 on."""

import os
import signal
import sys

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
os.execvp(sys.argv[1], sys.argv[1:])
