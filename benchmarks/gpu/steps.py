"""The steps of each command, in the order in which their answers are wanted."""

import dataclasses
from dataclasses import dataclass

LEAST = 4.0  # seconds without which a step is not begun


@dataclass(frozen=True)
class Step:
    name: str
    work: str  # module:function of this package, which is given a Task
    limit: float  # seconds
    leaves: float = 0.0  # for the steps after it
    vital: bool = False  # nothing is to be learned where it fails
    alone: bool = False  # in a process of its own, since it changes what torch keeps for good


A = (
    Step("machine", "machine:machine", 30, vital=True),
    Step("site", "machine:site", 40, vital=True),
    Step("kernels", "kernels:kernels", 40),
    Step("ways", "ways:ways", 85, leaves=45),
    Step("failed capture", "ways:failed_capture", 25, leaves=40, alone=True),
    Step("deterministic", "ways:deterministic", 40, leaves=30, alone=True),
    Step("killed", "ways:killed", 60, leaves=20),
    Step("doctor", "machine:doctor", 60),
)
BETONS = Step("betons", "machine:betons", 60)
B = (
    Step("speedrun", "trainings:speedrun", 130),
    Step("rates", "rates:rates", 120),
    Step("ResNet-20", "trainings:resnet20", 100, leaves=40),
    Step("deep", "trainings:deep", 420, leaves=40),
    Step("feeding", "rates:feeding", 60),
)
MORE = (
    Step("tests", "machine:tests", 3600),
    Step("tables", "machine:tables", 3600),
)


def of(command: str, seconds: float, has_data: bool) -> list[Step]:
    """Of a command; with more time than it wants, every step may take ten times as long."""
    steps = {"a": A, "b": (*(() if has_data else (BETONS,)), *B), "all": (*A, *B, *MORE)}[command]
    patience = 10 if seconds > 1000 else 1
    return [dataclasses.replace(step, limit=step.limit * patience) for step in steps]


def cuts(seconds: float) -> set[str]:
    """What the second command leaves out where it has fewer than its 540 seconds, in this order,
    until that is enough."""
    short, found = 540 - seconds, set()
    for name, saved in (("strong plain loop", 20), ("batch 1024", 25), ("five speedruns", 35)):
        if short > 0:
            found.add(name)
            short -= saved
    return found
