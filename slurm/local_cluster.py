"""A real SLURM of several nodes on this one machine, for trials and tests.

`make cluster` opens a shell in which `sinfo` and `sbatch slurm/resnet110.sh` work. In Python:

    with LocalCluster(folder) as cluster:
        subprocess.run(["sbatch", ...], env=cluster.environment)

Everything (keys, ports, state, logs) is its own and lies in the folder; what it started ends with
it, and nothing else does. Several slurmd on one host are a feature of SLURM itself (`slurmd -N`);
the CPUs and GPUs of a node are pretended."""

import argparse
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PACKAGES = ("slurm-wlm", "munge")  # Debian's and Ubuntu's names
START_SECONDS = 60
CPUS = 32  # of a node: as many as batch scripts ask for, by config_overrides below

CONFIG = """\
ClusterName=local{controller_port}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
SlurmdParameters=config_overrides
SlurmctldParameters=preempt_send_user_signal
SchedulerParameters=sched_interval=2,batch_sched_delay=0
JobRequeue=1
ReturnToService=2
KillWait={kill_wait}
SlurmdTimeout={slurmd_timeout}
MessageTimeout={message_timeout}
GresTypes=gpu
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class LocalCluster:
    """Nodes n1, n2, ... with `cpus` CPUs and `gpus` GPUs each, which are pretended.

    kill_wait, slurmd_timeout: seconds after which SLURM kills what ignores SIGTERM, and gives up a
    silent node; a third of that, 10 at least, is how long any answer may take."""

    def __init__(
        self,
        folder: Path,
        nodes: int = 2,
        cpus: int = CPUS,
        gpus: int = 2,
        *,
        kill_wait: int = 15,
        slurmd_timeout: int = 20,
    ) -> None:
        self.folder, self.cpus, self.gpus = folder, cpus, gpus
        self.nodes = [f"n{i + 1}" for i in range(nodes)]
        self.kill_wait, self.slurmd_timeout = kill_wait, slurmd_timeout
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        self.daemons: dict[str, subprocess.Popen] = {}

    def __enter__(self) -> "LocalCluster":
        install()
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "state").mkdir(exist_ok=True)
        self._configure()
        try:
            self._start_munge()
            self.start("slurmctld", "slurmctld", "-D", "-c")
            for node in self.nodes:
                self.start_node(node)
            self.wait_until_idle()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def start(self, name: str, *command: str) -> None:
        with open(self.folder / f"{name}.out", "ab") as log:
            self.daemons[name] = subprocess.Popen(
                command,
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def start_node(self, node: str) -> None:
        (self.folder / f"spool-{node}").mkdir(exist_ok=True)
        self.start(node, "slurmd", "-D", "-N", node)

    def kill_controller(self) -> None:
        """As if its machine had failed, once it has saved how things stand, which it does within
        five seconds: a job that is not known to run would be started again, and its node drained
        ("Duplicate jobid"). `restart_controller` finds what was saved."""
        time.sleep(6)
        self.daemons["slurmctld"].kill()
        self.daemons.pop("slurmctld").wait()

    def restart_controller(self) -> None:
        self.start("slurmctld", "slurmctld", "-D")
        while subprocess.run(["squeue"], env=self.environment, capture_output=True).returncode:
            time.sleep(0.2)

    def command(self, *words: str) -> str:
        """The output of squeue, scontrol and the like. Raises CalledProcessError."""
        return subprocess.run(
            words, env=self.environment, check=True, capture_output=True, text=True, timeout=60
        ).stdout

    def wait_until_idle(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                states = self.command("sinfo", "--noheader", "--Node", "--format=%T").split()
            except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
                states = []  # the controller is not up yet
            if states == ["idle"] * len(self.nodes):
                return
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"the local cluster is not up after {START_SECONDS} s (nodes: {states}): see "
                    f"the logs in {self.folder}"
                )
            time.sleep(0.2)

    def stop(self) -> None:
        """Cancel every job, then end the daemons that this object started."""
        if "slurmctld" in self.daemons:
            subprocess.run(
                ["scancel", "--partition=main"],
                env=self.environment,
                capture_output=True,
                timeout=30,
            )
            deadline = time.monotonic() + self.kill_wait + 10
            while time.monotonic() < deadline:
                done = subprocess.run(
                    ["squeue", "--noheader"],
                    env=self.environment,
                    capture_output=True,
                    text=True,
                    timeout=30,
                )
                if done.returncode or not done.stdout.strip():
                    break
                time.sleep(0.3)
        for process in reversed(self.daemons.values()):
            process.terminate()
        for process in self.daemons.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _start_munge(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        files = {
            name: f"--{name}={self.folder}/munge.{name.removesuffix('-file')}"
            for name in ("key-file", "pid-file", "log-file", "seed-file")
        }
        self.start(
            "munged",
            "munged",
            "--foreground",
            "--force",
            f"--socket={self.folder}/munge.socket",
            *files.values(),
        )

    def _configure(self) -> None:
        ports = _free_ports(1 + len(self.nodes))
        host = socket.gethostname().split(".")[0]
        gres = f" Gres=gpu:{self.gpus}" if self.gpus else ""
        lines = [
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={self.cpus} "
            f"RealMemory=8000{gres}"
            for node, port in zip(self.nodes, ports[1:])
        ]
        (self.folder / "slurm.conf").write_text(
            CONFIG.format(
                host=host,
                controller_port=ports[0],
                user=pwd.getpwuid(os.getuid()).pw_name,
                folder=self.folder,
                kill_wait=self.kill_wait,
                slurmd_timeout=self.slurmd_timeout,
                message_timeout=max(10, self.slurmd_timeout // 3),
                nodes="\n".join(lines),
            )
        )
        (self.folder / "cgroup.conf").write_text(
            "CgroupPlugin=cgroup/v1\n"
        )  # unused, but v2 wants a mounted hierarchy
        gpus = (
            f"/dev/tty[0-{self.gpus - 1}]" if self.gpus > 1 else "/dev/tty0"
        )  # any device files do
        (self.folder / "gres.conf").write_text(
            "".join(
                f"NodeName={n} Name=gpu Count={self.gpus} File={gpus}\n"
                for n in self.nodes
                if self.gpus
            )
        )


def install() -> None:
    """Install SLURM where it is missing and this user may; else raise RuntimeError with the
    remedy."""
    if all(shutil.which(name) for name in ("slurmctld", "slurmd", "munged", "sbatch")):
        return
    packages = " ".join(PACKAGES)
    as_root = [] if os.getuid() == 0 else ["sudo", "-n"]
    if (
        not shutil.which("apt-get")
        or subprocess.run([*as_root, "true"], capture_output=True).returncode
    ):
        raise RuntimeError(
            "SLURM is not installed, and this user cannot install it: have root run `apt-get "
            f"install {packages}`"
        )
    print(f"installing {packages}", file=sys.stderr, flush=True)
    apt = [*as_root, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq"]
    subprocess.run([*apt, "update"], check=True)
    subprocess.run(
        [*apt, "install", "-y", "--no-install-recommends", *PACKAGES],
        check=True,
        stdout=subprocess.DEVNULL,
    )


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Open a shell on a SLURM cluster of this one machine."
    )
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--cpus", type=int, default=CPUS, help=f"of each node, pretended ({CPUS})")
    parser.add_argument("--gpus", type=int, default=2, help="of each node, pretended (2)")
    parser.add_argument("command", nargs="*", help="run this instead of a shell")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:
        try:
            with LocalCluster(Path(folder), options.nodes, options.cpus, options.gpus) as cluster:
                print(
                    f"{options.nodes} nodes are up (logs in {folder}); their GPUs are pretended: "
                    "train with --train.device cpu; leave with exit",
                    file=sys.stderr,
                    flush=True,
                )
                sys.exit(
                    subprocess.run(
                        options.command or [os.environ.get("SHELL", "bash")],
                        env=cluster.environment,
                    ).returncode
                )
        except RuntimeError as error:
            sys.exit(f"local_cluster: error: {error}")


if __name__ == "__main__":
    main()
