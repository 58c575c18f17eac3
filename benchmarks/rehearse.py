"""What benchmarks/gpu.sh would run, in this one process: python -m benchmarks.rehearse OUT < PLAN

A line of PLAN: a name, a module, its arguments, as a shell quotes them. What each prints goes to
OUT/NAME.txt. Ends with 1 where one failed."""

import contextlib
import importlib
import shlex
import sys
import traceback
from pathlib import Path

from benchmarks import measure


def run(out: Path, name: str, module: str, arguments: list[str]) -> bool:
    sys.argv = [module, *arguments]
    with open(out / f"{name}.txt", "w") as log, contextlib.redirect_stdout(log):
        try:
            importlib.import_module(module).main()
        except SystemExit as ended:
            return not ended.code
        except Exception:
            traceback.print_exc(file=log)
            return False
    return True


def main() -> None:
    out, failed = Path(sys.argv[1]), []
    measure.SETTLE_SECONDS = 0.0  # nobody reads these figures
    for name, module, *arguments in map(shlex.split, sys.stdin):
        if not run(out, name, module, arguments):
            failed.append(name)
            print(f"== {name} failed:\n{(out / f'{name}.txt').read_text()}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
