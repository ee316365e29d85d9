"""The script that starts ``ftrayd`` and replaces a dead zygote; run by path, not imported.

``boot.py node <fd>``: read the configuration from the lifeline, fork the zygote before anything else
exists, become ``ftrayd``. ``boot.py zygote <fd> <ftrayd pid>``: become a zygote. ``boot.py spill <fd>``:
become the process that writes spilled objects. ``boot.py discard <fd>``: become the process that removes
checkpoints.

The package ``ftray`` is entered into ``sys.modules`` without running its ``__init__``: ``ftrayd`` needs only
``ftray._node``, and the public API would cost it most of its start-up time and memory. The zygote, whose
children run user code, completes the same module object.

``boot.py worker <fd>``: become a worker that needed an interpreter of its own.
"""

import sys

if not (sys.flags.isolated or getattr(sys.flags, "safe_path", False)):
    del sys.path[0]  # this script's directory: its modules are no top-level modules

import marshal
import os
import socket
import time
from importlib.machinery import PathFinder
from types import ModuleType

_CONFIG_BYTES = 1 << 20


def _package() -> ModuleType:
    """Enter ``ftray`` into ``sys.modules``, not executed."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    spec = PathFinder.find_spec("ftray", [os.path.dirname(root)])
    if spec is None or spec.submodule_search_locations is None:
        raise SystemExit(f"no package ftray at {root}")
    package = ModuleType("ftray")
    package.__spec__ = spec
    package.__loader__ = spec.loader
    package.__file__ = spec.origin
    package.__path__ = spec.submodule_search_locations
    package.__package__ = "ftray"
    sys.modules["ftray"] = package
    return package


def _complete(package: ModuleType) -> None:
    """Run the package's ``__init__``."""
    spec = package.__spec__
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(package)


def _be_zygote(sock: socket.socket, ftrayd_pid: int, package: ModuleType, worker_module: str) -> None:
    from ftray._node.zygote import Zygote

    zygote = Zygote(sock, ftrayd_pid, worker_module)
    zygote.prepare(lambda: _complete(package))
    job = zygote.serve()
    del zygote
    job()


def _leave_launcher(fd: int) -> None:
    """A head outlives the directory, and what has the descriptors, that it was started with."""
    from ftray._core import procs

    procs.close_range(fd + 1)
    os.chdir("/")


def _be_node(fd: int, started_s: float) -> None:
    lifeline = socket.socket(fileno=fd)
    os.set_inheritable(fd, False)
    data = lifeline.recv(_CONFIG_BYTES)
    if not data:
        return  # the driver is gone already
    config = marshal.loads(data)
    sys.path[:] = config["sys_path"]
    package = _package()
    if config["head"]:
        _leave_launcher(fd)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ftrayd_pid = os.getpid()
    zygote_pid = os.fork()
    if zygote_pid == 0:
        lifeline.close()
        ours.close()
        _be_zygote(theirs, ftrayd_pid, package, config["worker_module"])
        return
    theirs.close()
    from ftray._node import daemon

    daemon.run(lifeline, config, ours, zygote_pid, started_s)


def _be_worker(fd: int) -> None:
    with os.fdopen(fd, "rb") as file:
        config = marshal.loads(file.read())
    sys.path[:] = config["sys_path"]
    _complete(_package())
    from ftray._node.zygote import fresh_worker

    job = fresh_worker(config)
    job()


def main() -> None:
    """Take the role that the command line names."""
    started_s = time.monotonic()
    role, fd = sys.argv[1], int(sys.argv[2])
    if role == "node":
        _be_node(fd, started_s)
        return
    if role == "worker":
        _be_worker(fd)
        return
    sock = socket.socket(fileno=fd)
    config = marshal.loads(sock.recv(_CONFIG_BYTES))
    sys.path[:] = config["sys_path"]
    if role == "spill":
        _package()
        from ftray._node import spill_process

        spill_process.main(sock, config["location"])
        return
    if role == "discard":
        package = _package()
        from ftray._node import discard_process

        discard_process.main(sock, config["session_dir"], lambda: _complete(package))
        return
    _be_zygote(sock, int(sys.argv[3]), _package(), config["worker_module"])


if __name__ == "__main__":
    main()
