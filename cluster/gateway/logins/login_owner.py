"""What this node decides about the users that it owns: the directory, and when it may be used.

It is used when the nodes that may hold users have told them, or have had their time to. What a node
asked before its connection was made counts by its stamp, until it says that this was all.
"""

from collections import deque
from collections.abc import Callable, Iterable

from cluster.gateway.logins.directory import Ask, Command, UserDirectory
from cluster.gateway.logins.login_records import (
    ASK,
    CHECK,
    CHECKED,
    Login,
    LoginNews,
    LoginRecord,
)
from cluster.shared.user_records import SecondLogin

__all__ = ["LoginOwner"]


class LoginOwner:
    """The owner's part of one node. For the dispatching thread; times are those of the core."""

    def __init__(
        self,
        timeout_s: float,
        give: Callable[[int, LoginRecord], None],
        is_reachable: Callable[[int], bool],
    ) -> None:
        """Wait `timeout_s` for what nodes have to tell, half of it for a holder that is asked.

        What is decided goes to `give(node, record)`, this node's own included, in order.
        """
        self.directory = UserDirectory()
        self.on_complete: Callable[[], None] = lambda: None
        """Called when the directory is complete, before it decides what has waited, if anything."""
        self._timeout_s = timeout_s
        self._give = give
        self._is_reachable = is_reachable
        self._resuming: set[int] = set()  # nodes whose records may be from before a cut
        self._awaited: dict[int, float] = {}  # nodes whose users are not told yet, until when
        self._commands: deque[Command] = deque()
        self._is_running = False

    @property
    def is_waiting(self) -> bool:
        """Whether `look` has anything to give up."""
        return bool(self._awaited) or self.directory.has_contests

    def take(self, node: int, record: LoginRecord, now: float) -> None:
        """Take what a node, maybe this one, asks or tells the owner."""
        directory, user = self.directory, record.user
        login = Login(record.stamp, node, record.session)
        if record.kind == ASK:
            is_late = node in self._resuming
            ask = Ask(user, login, record.request, SecondLogin(record.what), is_late)
            self._run(directory.ask(ask, now))
        elif record.kind == CHECKED:
            self._run(directory.checked(user, node, record.session, bool(record.what), now))
        elif record.what == LoginNews.HOLD:
            self._run(directory.hold(user, login))
        elif record.what == LoginNews.FREE:
            self._run(directory.free(user, node, record.session, now))
        elif record.what == LoginNews.BEGIN:
            directory.begin(node)
        else:
            self._resuming.discard(node)
            self._run(directory.end(node, now))
            self._give_up(node, now)

    def _run(self, commands: list[Command]) -> None:
        """Give each node what the directory has decided, in order."""
        self._commands.extend(commands)
        if self._is_running:
            return  # this node was given a command, and whoever gave it goes on with these
        self._is_running = True
        try:
            while self._commands:
                node, record = self._commands.popleft()
                if record.kind == CHECK and not self._is_reachable(node):
                    self._commands.extend(self.directory.unreachable(record.user))
                else:
                    self._give(node, record)
        finally:
            self._is_running = False

    # -- nodes -------------------------------------------------------------------------------------

    def await_nodes(self, nodes: Iterable[int], now: float) -> None:
        """Decide nothing before `nodes` have told their users, or have had the time to."""
        for node in nodes:
            # A node that begins life after life has no more time: all would wait for it for ever.
            self._awaited.setdefault(node, now + self._timeout_s)
        self.directory.await_nodes(self._awaited)

    def linked(self, node: int, is_new_life: bool, now: float) -> None:
        """A connection to `node` stands; with `is_new_life` its users are told anew, if any."""
        self._resuming.add(node)
        if is_new_life:
            self.await_nodes([node], now)
            self._run(self.directory.forget_node(node, now))

    def forget(self, node: int, now: float) -> None:
        """`node` has left the cluster."""
        self._resuming.discard(node)
        self._run(self.directory.forget_node(node, now))
        self._give_up(node, now)

    def _give_up(self, node: int, now: float) -> None:
        """Await what `node` has to tell no longer."""
        self._awaited.pop(node, None)
        self.directory.give_up(node)
        if self.directory.is_complete:
            self.on_complete()
            self._run(self.directory.decide_early(now))

    def look(self, now: float) -> None:
        """Give up what has waited for too long."""
        for node in [node for node, until in self._awaited.items() if until <= now]:
            self._give_up(node, now)
        # Before those who asked give up: the directory may have been incomplete for a while.
        self._run(self.directory.expire(now - self._timeout_s / 2))
