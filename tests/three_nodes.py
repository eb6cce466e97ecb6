"""Three Ray nodes on this machine that share nothing but a network: each in namespaces of its own, with an address and processes that no other node sees.

Their Python has the project's dependencies and not the project: what they know of it comes with a job's working directory.
"""

import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

BRIDGE, NETWORK, INSIDE = "ltbr0", "10.77.7", "eth0"
HOST = f"{NETWORK}.1"
NODES = {"lt-head": f"{NETWORK}.2", "lt-left": f"{NETWORK}.3", "lt-right": f"{NETWORK}.4"}
UNSHARE = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
TOKEN = "0123456789abcdef" * 4


def missing() -> str | None:
    """Why namespaces cannot be made here; None where they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    absent = [name for name in ("ip", "unshare") if shutil.which(name) is None]
    if absent:
        return f"there is no {' or '.join(absent)} command (Debian's iproute2 and util-linux)"
    made = subprocess.run(["ip", "netns", "add", "lt-probe"], capture_output=True, text=True)
    if made.returncode != 0:
        return f"network namespaces cannot be made here: {made.stderr.strip()}"
    within = subprocess.run(["ip", "netns", "exec", "lt-probe", *UNSHARE, "true"], capture_output=True, text=True)
    subprocess.run(["ip", "netns", "delete", "lt-probe"], check=True)
    return None if within.returncode == 0 else f"process namespaces cannot be made here: {within.stderr.strip()}"


def ip(*words: str, check: bool = True) -> None:
    subprocess.run(["ip", *words], check=check, capture_output=True)


@contextmanager
def network() -> Iterator[None]:
    """A bridge with this machine's address, and a namespace for every node on it."""
    take_down()  # what a run that was killed has left
    try:
        ip("link", "add", BRIDGE, "type", "bridge")
        ip("addr", "add", f"{HOST}/24", "dev", BRIDGE)
        ip("link", "set", BRIDGE, "up")
        for number, (name, address) in enumerate(NODES.items()):
            outside = f"ltv{number}o"
            ip("netns", "add", name)
            ip("link", "add", outside, "type", "veth", "peer", "name", INSIDE, "netns", name)
            ip("link", "set", outside, "master", BRIDGE, "up")
            ip("-n", name, "addr", "add", f"{address}/24", "dev", INSIDE)
            ip("-n", name, "link", "set", INSIDE, "up")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "route", "add", "default", "via", HOST)
        yield
    finally:
        take_down()


def take_down() -> None:
    for name in NODES:
        ip("netns", "delete", name, check=False)  # its end of the cable goes with it, and so does the other end
    ip("link", "delete", BRIDGE, check=False)


def python_without_the_project(folder: Path) -> Path:
    """A Python that sees every installed package but the project's own."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    links = folder / "packages"
    links.mkdir()
    installed = Path(next(path for path in sys.path if path.endswith("site-packages")))
    for entry in installed.iterdir():
        if not entry.name.startswith(("__editable__", "longtail")):
            (links / entry.name).symlink_to(entry)
    site = next((folder / "venv" / "lib").glob("python*/site-packages"))
    (site / "dependencies.pth").write_text(f"{links}\n")
    return folder / "venv" / "bin" / "python"


@dataclass(frozen=True)
class Cluster:
    """Three nodes that are up."""

    python: Path
    environment: dict[str, str]

    @property
    def dashboard(self) -> str:
        return f"http://{NODES['lt-head']}:8265"

    def submission(self, *command: str, job: str | None = None) -> list[str]:
        """The words that submit a job from the project's root, as a user does, from outside of the nodes; `job` is its id."""
        words = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", self.dashboard, "--working-dir", "."]
        words += ["--runtime-env", "platform/runtime_env.yaml", *(["--submission-id", job] if job is not None else [])]
        return [*words, "--", *command]

    def submit(self, root: Path, *command: str, timeout_s: float) -> subprocess.CompletedProcess[str]:
        """A job to its end."""
        return subprocess.run(self.submission(*command), cwd=root, env=self.environment, capture_output=True, text=True, timeout=timeout_s)


def flags(uri: str, settings: Iterable[str]) -> list[str]:
    """What a command is given for the smallest run, with its artifacts at `uri`."""
    return ["--config", "pipelines/configs/test.toml", "--out", uri, *(word for one in settings for word in ("--set", one))]


@contextmanager
def three_nodes(folder: Path, **more: str) -> Iterator[Cluster]:
    """Three nodes of one CPU each for the length of a block; `folder` must be short, Ray's sockets lie below it."""
    python = python_without_the_project(folder)
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RAY_ADDRESS", "VIRTUAL_ENV")}
    environment |= {"PATH": f"{python.parent}:{os.environ['PATH']}", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "HOME": str(folder), **more}
    environment["GLOO_SOCKET_IFNAME"] = INSIDE  # else gloo takes the address of the machine's name, which no namespace has
    with network(), ExitStack() as started:
        for name, address in NODES.items():
            # Ray looks for other Rays among the processes that it sees; and when the first process of a namespace ends, all others in it do.
            words = ["ip", "netns", "exec", name, *UNSHARE]
            words += [str(python), "-m", "ray.scripts.scripts", "start", "--block", f"--node-ip-address={address}", "--num-cpus=1"]
            words += [f"--object-store-memory={160 * 2**20}", "--disable-usage-stats", f"--temp-dir={folder / name}"]
            if name == "lt-head":
                words += ["--head", "--port=6379", "--dashboard-host=0.0.0.0", "--dashboard-port=8265"]
            else:
                words += [f"--address={NODES['lt-head']}:6379"]
            log = started.enter_context(open(folder / f"{name}.log", "wb"))
            process = subprocess.Popen(words, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
            started.callback(end, process)
            if name == "lt-head":
                wait_for(f"http://{address}:8265/api/version")
        yield Cluster(python, environment)


def wait_for(url: str, timeout_s: float = 120) -> None:
    """Until a server answers, whatever it says."""
    limit = time.monotonic() + timeout_s
    while time.monotonic() < limit:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except urllib.error.HTTPError:
            return  # it asks for a token
        except OSError:
            time.sleep(0.5)
    raise TimeoutError(f"{url} does not answer after {timeout_s:g} s")


def end(process: subprocess.Popen[bytes]) -> None:
    """End a node and all that it started: its first process is killed with this one, and is gone when all in its namespace are."""
    import psutil

    first = psutil.Process(process.pid).children() if process.poll() is None else []
    process.kill()
    process.wait(timeout=10)
    psutil.wait_procs(first, timeout=30)
