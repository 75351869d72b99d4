"""A real Slurm on this machine for the length of a `with` block: its own munged, slurmctld and slurmd."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

Env = dict[str, str]
DAEMONS = ("munged", "slurmctld", "slurmd")

# Two partitions over one node of two CPUs. A job in `high` preempts those in `low`, which requeue.
CONF = """
ClusterName=muwa
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
JobRequeue=1
KillWait=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
SlurmdParameters=config_overrides
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=low Nodes={host} Default=YES PriorityTier=1
PartitionName=high Nodes={host} PriorityTier=10 PreemptMode=OFF
"""


def missing() -> str | None:
    """Why Slurm cannot be started here; None if it can."""
    absent = [name for name in DAEMONS if shutil.which(name) is None]
    if absent:
        return f"no {', '.join(absent)} here: apt-get install slurm-wlm munge"
    return "Slurm's daemons want root" if os.geteuid() else None


@contextmanager
def cluster() -> Iterator[Env]:
    """Start the cluster. Yields the environment in which sbatch and the other commands find it.

    Its jobs and daemons end with the block.
    """
    with tempfile.TemporaryDirectory(prefix="slurm-") as name, ExitStack() as stack:
        folder, host = Path(name), socket.gethostname().split(".")[0]
        folder.chmod(0o755)  # munged wants a socket that all users can reach
        for inner in ("state", "spool"):
            (folder / inner).mkdir()
        (folder / "munge.key").write_bytes(secrets.token_bytes(128))
        (folder / "munge.key").chmod(0o600)
        conf = folder / "slurm.conf"
        conf.write_text(CONF.format(folder=folder, host=host, controller=_free_port(), node=_free_port()))
        env = {**os.environ, "SLURM_CONF": str(conf)}

        files = [f"--{one}-file={folder}/munge.{one}" for one in ("key", "log", "pid", "seed")]
        munged = ["munged", "--foreground", f"--socket={folder}/munge.socket", *files]
        stack.enter_context(_daemon(munged, folder, env))
        wait(lambda: (folder / "munge.socket").exists(), "munged's socket")
        stack.enter_context(_daemon(["slurmctld", "-D"], folder, env))
        wait(lambda: "UP" in ask(env, "scontrol", "ping"), "slurmctld")
        stack.enter_context(_daemon(["slurmd", "-D", "-N", host], folder, env))
        # the spool folder has one socket for each job step
        stack.callback(_clear, env, lambda: list((folder / "spool").glob(f"{host}_*")))
        wait(lambda: ask(env, "sinfo", "-h", "-o", "%T").split() == ["idle"], "an idle node")
        yield env


def ask(env: Env, *command: str) -> str:
    """The output of a Slurm command; empty if it fails."""
    return subprocess.run(command, env=env, capture_output=True, text=True).stdout


def wait(ready: Callable[[], object], what: str, seconds: float = 30) -> None:
    """Wait until `ready()` is true.

    Raises:
        TimeoutError: It is not after so many seconds; says what was waited for.
    """
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds:.0f} s for {what}")
        time.sleep(0.1)


@contextmanager
def _daemon(command: list[str], folder: Path, env: Env) -> Iterator[None]:
    """Run a daemon with its output in a file. It ends with the block, by force after ten seconds."""
    with (folder / f"{command[0]}.out").open("w") as out:
        process = subprocess.Popen(command, env=env, stdout=out, stderr=out)
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _clear(env: Env, steps: Callable[[], object]) -> None:
    """Cancel the jobs and wait for their end. Otherwise their processes would outlive the daemons."""
    ask(env, "scancel", "-u", "root")
    wait(lambda: not ask(env, "squeue", "-h") and not steps(), "the end of the jobs")


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Brake:
    """A logger that waits after the gradients in the first attempt of a job: a test can preempt it there."""

    def log(self, event, row):
        if event == "gradients" and "SLURM_RESTART_COUNT" not in os.environ:
            time.sleep(300)

    def close(self, report):
        pass
