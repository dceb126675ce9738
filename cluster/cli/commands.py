"""The command line: `cluster up`, `gateway`, `worker`, `keys`, `status`, `reload`, `metrics`,
`websocket`, `dead-letters`, `bots`.

Parses and calls; what is called is imported by the command that calls it, because the time to
import the rest would be added to the time until a node is ready. Everything that a user can get
wrong ends in one line on stderr and exit code 2.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.cli.dead_letters_command import dead_letters
from cluster.cli.errors import (
    EXIT_NOT_RELOADED,
    EXIT_NOTHING_RUNS,
    Commands,
    told_in_one_line,
)
from cluster.cli.flags import (
    check_local_worker,
    config_flags,
    find_run_directory,
    needs_library,
    parsed_flag,
    run_directory_of,
    watched_directories,
)
from cluster.cli.options import (
    AppOption,
    ConfigOption,
    DriverOption,
    LaneOption,
    ListenOption,
    LogLevel,
    LogLevelOption,
    NodeIdOption,
    ReloadDirOption,
    RequiredRunDir,
    RunDirOption,
    WorkersOption,
)
from cluster.cli.websocket_command import websocket

if TYPE_CHECKING:
    from cluster.shared.config import Config
    from cluster.shared.run_directory import RunDirectory

__all__ = ["app", "main"]


app = typer.Typer(
    cls=Commands,
    help="A TCP session server: one process holds the clients, others run your application.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            typer.echo(f"cluster {version('iocp-cluster')}")
        except PackageNotFoundError:
            typer.echo("cluster, from a source tree that is not installed")
        raise typer.Exit


@app.callback()
def _cluster(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass


@app.command(short_help="Run a node: a gateway and its workers.")
@told_in_one_line
def up(
    config: ConfigOption = None,
    listen: ListenOption = None,
    workers: WorkersOption = None,
    app: AppOption = None,
    driver: DriverOption = None,
    lane: LaneOption = None,
    run_dir: RunDirOption = None,
    node_id: NodeIdOption = None,
    log_level: LogLevelOption = None,
    nodes: Annotated[
        int,
        typer.Option(
            "--nodes", metavar="N", min=1, help="To try a cluster: run N linked nodes, 16 at most."
        ),
    ] = 1,
    shared_port: Annotated[
        bool,
        typer.Option(
            "--shared-port",
            help="Share the client port with other nodes of this machine that do so too; "
            "with --nodes, all of them share one.",
        ),
    ] = False,
    reload: Annotated[
        bool,
        typer.Option(
            "--reload",
            help="Replace the workers when Python files change; clients stay connected.",
        ),
    ] = False,
    reload_dir: ReloadDirOption = None,
) -> int:
    """Run a node: a gateway and its workers, until SIGTERM or Ctrl-C drains it."""
    from cluster.shared.config_file import load_config
    from cluster.shared.logs import configure_logging, follow_config
    from cluster.shared.run_directory import RunDirectory
    from cluster.supervisor.supervisor import supervise

    configure_logging("supervisor")
    flags = config_flags(listen, workers, app, driver, lane, run_dir, node_id, log_level)
    flags["node.shared_port"] = shared_port or None
    resolved = load_config(config, flags)
    follow_config(resolved)
    path = run_directory_of(resolved)
    watched = watched_directories(resolved.node.app, reload, reload_dir or [])
    if nodes > 1:
        return _up_nodes(resolved, path, nodes, watched)
    return supervise(resolved, RunDirectory(path), watched)


def _up_nodes(config: "Config", path: Path, nodes: int, watched: list[Path]) -> int:
    from cluster.shared.config import ConfigError
    from cluster.supervisor.fleet import NODES_MAX, supervise_nodes

    if os.name != "posix":
        raise ConfigError(f"--nodes = {nodes}: not on this system; run `cluster up` for each node")
    if nodes > NODES_MAX:
        raise ConfigError(f"--nodes = {nodes}: expected 1 to {NODES_MAX}")
    return supervise_nodes(config, path, nodes, watched)


@app.command(short_help="Run the gateway alone.")
@told_in_one_line
def gateway(
    run_dir: RequiredRunDir,
    config: ConfigOption = None,
    listen: ListenOption = None,
    workers: WorkersOption = None,
    app: AppOption = None,
    driver: DriverOption = None,
    lane: LaneOption = None,
    node_id: NodeIdOption = None,
    log_level: LogLevelOption = None,
) -> int:
    """Run the gateway alone, for a supervisor of your own.

    Workers that are started in the same DIR take the configuration from it.
    """
    from cluster.gateway.process import run_gateway
    from cluster.shared.config_file import load_config
    from cluster.shared.logs import configure_logging, follow_config
    from cluster.shared.run_directory import RunDirectory

    configure_logging("gateway")
    flags = config_flags(listen, workers, app, driver, lane, run_dir, node_id, log_level)
    resolved = load_config(config, flags)
    follow_config(resolved)
    run_directory = RunDirectory(Path(run_dir))
    run_directory.create()
    run_directory.begin_with(resolved)
    return run_gateway(run_directory, resolved)


@app.command(short_help="Run one worker alone, here or on another machine.")
@told_in_one_line
def worker(
    shard: Annotated[int, typer.Option("--shard", metavar="N", min=0, help="Which shard, from 0.")],
    run_dir: Annotated[
        str | None,
        typer.Option(
            "--run-dir",
            metavar="DIR",
            help="The run directory of the node; with --gateway, where this worker keeps notes.",
        ),
    ] = None,
    gateway: Annotated[
        str | None,
        typer.Option(
            "--gateway",
            metavar="tcp://HOST:PORT",
            help="Work for a gateway on another machine: its remote.listen.",
        ),
    ] = None,
    keys: Annotated[
        Path | None,
        typer.Option(
            "--keys", metavar="DIR", help="With --gateway: this worker's keys and gateway.key."
        ),
    ] = None,
    app: Annotated[
        str | None,
        typer.Option(
            "--app", metavar="MODULE:NAME", help="With --gateway: the application, else an echo."
        ),
    ] = None,
    log_level: LogLevelOption = None,
) -> int:
    """Run one worker, for a supervisor of your own.

    With --run-dir alone it is one of the node in DIR; with --gateway and --keys it works for a
    gateway on another machine.
    """
    from cluster.shared.logs import configure_logging, set_log_level
    from cluster.shared.run_directory import RunDirectory, default_run_directory
    from cluster.worker.process import run_remote_worker, run_worker

    configure_logging(f"worker-{shard}")
    if gateway is None:
        check_local_worker(run_dir, keys, app, log_level)
        return run_worker(RunDirectory(Path(str(run_dir))), shard)
    from cluster.shared.config import ConfigError
    from cluster.shared.remote_endpoints import parse_gateway

    if keys is None:
        raise ConfigError("--keys: missing: nobody connects to a gateway elsewhere without a key")
    set_log_level(log_level or LogLevel.INFO)
    address = parsed_flag("--gateway", gateway, parse_gateway)
    directory = RunDirectory(Path(run_dir) if run_dir else default_run_directory())
    return run_remote_worker(address, keys, shard, app, directory)


@app.command(short_help="Make the keys of workers on other machines.")
@told_in_one_line
def keys(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where to put them.")],
    workers: Annotated[
        list[str] | None,
        typer.Option(
            "--worker",
            metavar="NAME",
            help="Make a pair for the machine NAME, and the gateway's pair if there is none; may "
            "be repeated. Without: the gateway's, and one pair named worker.",
        ),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace keys that are there already.")
    ] = False,
) -> int:
    """Make the keys by which a gateway and workers on other machines know each other."""
    from cluster.shared.config import ConfigError
    from cluster.shared.key_files import KeyFileError, check_worker_name, make_key_files

    for name in workers or []:
        parsed_flag("--worker", name, check_worker_name)
    try:
        made = make_key_files(directory, workers or [], replace=replace)
    except KeyFileError as error:
        raise ConfigError(str(error)) from None
    for name in made:
        typer.echo(directory / name)
    return 0


@app.command(short_help="Show the node that runs.")
@told_in_one_line
def status(
    config: ConfigOption = None,
    run_dir: RunDirOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    watch: Annotated[
        float | None,
        typer.Option(
            "--watch",
            metavar="S",
            min=0.1,
            max=3_600.0,
            help="Show it again every S seconds until Ctrl-C, with what has grown by the second.",
        ),
    ] = None,
) -> int:
    """Show the node that runs in DIR, or in the run directory that FILE names.

    Exit code 4 if none runs there, or no longer.
    """
    from cluster.shared.run_directory import RunDirectory
    from cluster.supervisor.status import read_status

    run_directory = RunDirectory(find_run_directory(config, run_dir))
    node = read_status(run_directory)
    if node is not None and watch is not None:
        from cluster.cli.status_watch import watch_status

        node = watch_status(node, lambda: read_status(run_directory), watch, as_json=as_json)
        if node is not None:
            return 0
    if node is None:
        return _nothing_runs(run_directory)
    if as_json:
        import msgspec

        typer.echo(msgspec.json.encode(node).decode())
    else:
        from cluster.cli.status_table import counts_of, make_console, print_parts, status_parts

        print_parts(make_console(), status_parts(node, counts_of(node)))
    return 0


@app.command("reload", short_help="Have the workers run the application as it is now.")
@told_in_one_line
def reload_application(
    config: ConfigOption = None,
    run_dir: RunDirOption = None,
    timeout: Annotated[
        float,
        typer.Option("--timeout", metavar="S", min=0.1, max=86_400.0, help="How long to wait."),
    ] = 60.0,
) -> int:
    """Have the workers of the node in DIR run the application as it is now.

    New workers replace the old ones one after the other, while clients stay connected; the command
    returns when all run it and spares wait. Exit code 1, with the reason, if the new version does
    not start (the old workers go on then, and what is left without one is named), or if that is not
    known within S seconds; 4 if no node runs there.
    """
    from cluster.shared.run_directory import RunDirectory
    from cluster.supervisor.reload_request import request_reload

    run_directory = RunDirectory(find_run_directory(config, run_dir))
    reason = request_reload(run_directory, timeout)
    if reason is None:
        return _nothing_runs(run_directory)
    if reason:
        typer.echo(f"cluster: not reloaded: {reason}", err=True)
        return EXIT_NOT_RELOADED
    return 0


def _nothing_runs(run_directory: "RunDirectory") -> int:
    from cluster.cli.folder_hints import nothing_runs_line

    typer.echo(nothing_runs_line(run_directory), err=True)
    return EXIT_NOTHING_RUNS


@app.command(short_help="Serve metrics for Prometheus.")
@told_in_one_line
def metrics(
    config: ConfigOption = None,
    run_dir: RunDirOption = None,
    listen: Annotated[
        str, typer.Option("--listen", metavar="HOST:PORT", help="Where Prometheus asks.")
    ] = "127.0.0.1:9464",
) -> int:
    """Serve the metrics of the node in DIR, or of all nodes in its folders, over HTTP."""
    from cluster.iocp import NetAddress
    from cluster.shared.addresses import parse_listen
    from cluster.shared.logs import configure_logging
    from cluster.shared.run_directory import RunDirectory

    configure_logging("metrics")
    address = NetAddress(*parsed_flag("--listen", listen, parse_listen))
    with needs_library("metrics", "prometheus-client", "metrics"):
        from cluster.metrics.exporter import serve_metrics
    return serve_metrics(RunDirectory(find_run_directory(config, run_dir)), address, typer.echo)


app.command(short_help="Let browsers connect, by WebSocket.")(websocket)
app.command(short_help="List packets that killed workers and were set aside.")(dead_letters)


@app.command(short_help="Load an echo server, and check every reply.")
@told_in_one_line
def bots(
    connect: Annotated[
        str, typer.Option("--connect", metavar="HOST:PORT", help="Where the echo listens.")
    ],
    sessions: Annotated[
        int,
        typer.Option("--sessions", metavar="N", min=1, max=1_000_000, help="Connections at once."),
    ] = 64,
    depth: Annotated[
        int,
        typer.Option("--depth", metavar="D", min=1, max=65_536, help="Packets in flight on each."),
    ] = 1,
    size: Annotated[
        int,
        typer.Option(
            "--size", metavar="PAYLOAD_BYTES", min=0, max=65_531, help="Bytes of each payload."
        ),
    ] = 60,
    seconds: Annotated[
        float, typer.Option("--seconds", metavar="S", min=0.0, max=86_400.0, help="How long.")
    ] = 10.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Load an echo server with packets, check every reply, and show rates and latencies.

    Exit code 1 if it cannot be reached, or a packet was lost or came back changed.
    """
    from cluster.bots.load_run import BotsSettings
    from cluster.bots.run_bots import run_bots
    from cluster.iocp import NetAddress
    from cluster.shared.addresses import parse_connect

    address = NetAddress(*parsed_flag("--connect", connect, parse_connect))
    return run_bots(BotsSettings(address, sessions, depth, size, seconds), as_json=as_json)


def main() -> None:
    """Run the command line and exit."""
    from cluster.shared.standard_streams import keep_exit_code, open_closed_streams
    from cluster.shared.tracebacks import tell_tracebacks

    open_closed_streams()
    keep_exit_code()
    tell_tracebacks()
    app(prog_name="cluster")
