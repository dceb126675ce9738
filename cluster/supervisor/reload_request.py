"""`cluster reload`: asks a node to run its application as it is now, and waits for the outcome."""

from cluster.shared.messages import Reload, Reloaded
from cluster.shared.run_directory import RunDirectory
from cluster.supervisor.gateway_question import ask_gateway

__all__ = ["request_reload"]


def request_reload(run_directory: RunDirectory, timeout_s: float) -> str | None:
    """Have the node in `run_directory` replace its workers; return why not, "" once it has.

    None when nothing runs there. Raises what `read_status` raises.
    """
    if not run_directory.exists():
        return None
    gateway = run_directory.holder("gateway")
    if gateway is None:
        is_node = run_directory.holder("supervisor") is not None
        return "the node has no gateway now: try again" if is_node else None

    def is_there() -> bool:
        return run_directory.holder("gateway") == gateway

    outcome = ask_gateway(run_directory, Reload(), Reloaded, timeout_s, is_there)
    if outcome is not None:
        return "" if outcome.succeeded else outcome.reason
    if not is_there():
        return "the gateway has ended meanwhile: see `cluster status`, and try again"
    return f"no outcome within {timeout_s:g} s; it goes on, and is counted in `cluster status`"
