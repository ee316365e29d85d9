"""``ftray start``: a node that outlives drivers."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from typing import Any, NoReturn

import click

# Options of `ray start` that mean something ftray does not have: (name, takes a value).
_REFUSED = {
    "--address": "a second machine cannot join: ftray runs on one",
    "--autoscaling-config": "nodes are not started automatically",
    "--cgroup-path": "workers are not put into cgroups",
    "--dashboard-agent-grpc-port": "there is no dashboard",
    "--dashboard-agent-listen-port": "there is no dashboard",
    "--dashboard-host": "there is no dashboard",
    "--dashboard-port": "there is no dashboard",
    "--labels-file": "give them with --labels",
    "--log-color": "nothing is coloured",
    "--log-style": "there is one style",
    "--max-worker-port": "no process listens on a port",
    "--metrics-export-port": "metrics are not exported",
    "--min-worker-port": "no process listens on a port",
    "--node-ip-address": "the node can be reached from this machine only",
    "--node-manager-port": "no process listens on a port",
    "--node-name": "nodes have no names",
    "--object-manager-port": "no process listens on a port",
    "--plasma-directory": "objects are in anonymous shared memory",
    "--port": "the node listens on a Unix socket; drivers attach by its address",
    "--proxy-server-url": "there is no dashboard",
    "--ray-client-server-port": "drivers attach on this machine only",
    "--redis-password": "the head's tables are in a local directory (--storage)",
    "--redis-username": "the head's tables are in a local directory (--storage)",
    "--runtime-env-agent-port": "no process listens on a port",
    "--system-reserved-cpu": "nothing is reserved",
    "--system-reserved-memory": "nothing is reserved",
    "--tracing-startup-hook": "there is no tracing",
    "--worker-port-list": "no process listens on a port",
}
_REFUSED_FLAGS = {
    "--enable-resource-isolation": "workers are not put into cgroups",
    "--no-redirect-output": "the node's output is in ftrayd.log of its session directory",
    "--ray-debugger-external": "there is no debugger",
}


def _refuse(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    if value is not None and value is not False:
        name = param.opts[0]
        raise click.UsageError(f"{name} is not supported: {(_REFUSED | _REFUSED_FLAGS)[name]}", ctx)


def _refuse_true(ctx: click.Context, param: click.Parameter, value: bool | None) -> None:
    if value:
        raise click.UsageError(f"{param.opts[0]} is not supported: there is no dashboard", ctx)


def _with_refused(command: Any) -> Any:
    for name in _REFUSED:
        command = click.option(name, hidden=True, expose_value=False, callback=_refuse)(command)
    for name in _REFUSED_FLAGS:
        command = click.option(name, is_flag=True, hidden=True, expose_value=False, callback=_refuse)(command)
    return click.option(
        "--include-dashboard", type=bool, hidden=True, expose_value=False, callback=_refuse_true
    )(command)


def _resources(_ctx: click.Context, _param: click.Parameter, text: str | None) -> dict[str, float]:
    if text is None:
        return {}
    try:
        found = json.loads(text)
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not JSON: {error}") from None
    numbers = isinstance(found, dict) and all(
        isinstance(amount, (int, float)) and not isinstance(amount, bool) for amount in found.values()
    )
    if not numbers:
        raise click.BadParameter(f"{text!r} is not a JSON object of numbers, as '{{\"widget\": 2}}' is")
    return {str(name): amount for name, amount in found.items()}


def _labels(_ctx: click.Context, _param: click.Parameter, text: str | None) -> dict[str, str]:
    pairs = [pair.partition("=") for pair in (text or "").split(",") if pair]
    if not all(equals for _name, equals, _value in pairs):
        raise click.BadParameter(f"{text!r} is not of the form name=value,name=value")
    return {name.strip(): value.strip() for name, _equals, value in pairs}


def default_storage() -> str:
    """Return this user's directory for what survives heads."""
    state = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return os.path.join(state, "ftray")


@click.command()
@click.option("--head", is_flag=True, help="Start a head, which is the only kind of node there is.")
@click.option("--num-cpus", type=float, help="CPUs to offer; by default those that this process may use.")
@click.option("--num-gpus", type=float, help="GPUs to offer.")
@click.option("--memory", type=int, help="Bytes of memory that tasks and actors can ask for.")
@click.option("--resources", callback=_resources, help="Custom resources, a JSON object of numbers.")
@click.option(
    "--object-store-memory",
    type=click.IntRange(min=1 << 20),
    help="Bytes for large objects; 30 % of memory by default.",
)
@click.option(
    "--object-spilling-directory",
    help="Directory or fsspec URL for large objects that memory has no room for;"
    " by default a place in the session's directory.",
)
@click.option("--labels", callback=_labels, help="Labels of the node: name=value,name=value.")
@click.option("--temp-dir", help="Where the session directory goes; FTRAY_TMPDIR or the system's by default.")
@click.option(
    "--storage",
    help="Directory in which the internal key-value store survives the node;"
    " $XDG_STATE_HOME/ftray or ~/.local/state/ftray by default.",
)
@click.option("--block", is_flag=True, help="Stay until the node ends, and end it with this command.")
@click.option("--disable-usage-stats", is_flag=True, hidden=True, expose_value=False)  # there are none
@_with_refused
def start(
    head: bool,
    num_cpus: float | None,
    num_gpus: float | None,
    memory: int | None,
    resources: dict[str, float],
    object_store_memory: int | None,
    object_spilling_directory: str | None,
    labels: dict[str, str],
    temp_dir: str | None,
    storage: str | None,
    block: bool,
) -> None:
    """Start a node as a process of its own, which outlives drivers."""
    from ftray._node import launch, session

    if not head:
        raise click.UsageError("give --head: ftray runs on one machine, there is no cluster to join")
    try:
        base = session.base_directory(temp_dir)
        running = session.find_head(base)
        if running is not None:
            raise click.ClickException(
                f"ftray runs already: its session is {running}; attach with ftray.init(), or end it with"
                " `ftray stop`"
            )
        options = launch.NodeOptions(
            num_cpus=num_cpus,
            num_gpus=num_gpus,
            memory=memory,
            resources=resources,
            object_store_memory=object_store_memory,
            object_spilling_directory=object_spilling_directory,
            labels=labels,
            tmpdir=base,
            head=True,
            storage=os.path.abspath(storage or default_storage()),
        )
        node = launch.start_node(options)
    except (ValueError, session.SessionError, launch.NodeStartError) as error:
        raise click.ClickException(str(error)) from None
    _serve(node, block)


def _serve(node: Any, block: bool) -> None:
    from ftray._node import launch

    try:
        node.wait_warm()
        if not block:
            node.detach()
    except launch.NodeStartError as error:
        node.shutdown()
        raise click.ClickException(str(error)) from None
    except BaseException:
        node.shutdown()
        raise
    asked_fd = _catch_signals() if block else -1
    _print_how_to_attach(node.session_dir)
    if block:
        _block(node, asked_fd)


def _print_how_to_attach(session_dir: str) -> None:
    click.echo(
        f"""ftray runs. Its session is {session_dir}

To attach a program on this machine:
    ftray.init()                    # or address="auto"; from elsewhere: the session as address
    FTRAY_ADDRESS={session_dir} python program.py

`ftray status` shows what it does, `ftray stop` ends it."""
    )


def _catch_signals() -> int:
    """Return a descriptor that can be read once a signal has asked for the end."""
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writer)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda _number, _frame: None)
    return reader


def _block(node: Any, asked_fd: int) -> NoReturn:
    """Wait for the node's end, or for a signal that asks for it."""
    ready, _, _ = select.select([asked_fd, node.lifeline_fd], [], [])
    asked = asked_fd in ready
    words = "" if asked else node.last_words()
    node.shutdown()
    if asked:
        click.echo("ftray has ended")
        sys.exit(0)
    raise click.ClickException(f"the node has ended{': ' + words if words else ''}")
