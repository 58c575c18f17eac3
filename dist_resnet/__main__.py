"""The command `dist-resnet`, also where another package named launch (ROS 2 has one) comes first on
the path: for this process and all that it starts, ours does."""

import importlib.util
import os
import sys
from pathlib import Path


def main() -> None:
    home = str(Path(__file__).parents[1])  # of dist_resnet and launch
    found = importlib.util.find_spec("launch")
    if found is None or found.origin != f"{home}/launch/__init__.py":
        sys.path.insert(0, home)
        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join([home, before] if before else [home])
        importlib.invalidate_caches()
    importlib.import_module("launch.__main__").main()


if __name__ == "__main__":
    main()
