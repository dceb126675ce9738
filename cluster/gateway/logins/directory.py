"""Which session each user is whose key this node owns, and who gets one that two ask for.

What is asked is decided in the order in which it comes, so that no clock can evict the newer of
two logins; each login's stamp is above that of the one it follows. Only what nodes decided while
they could not ask, or asked before a cut, is settled by stamps: the later one counts. A session
whose node cannot be reached keeps nobody out. No I/O, no clock.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from cluster.gateway.logins.login_records import (
    ANSWER,
    CHECK,
    STAMP_MAX,
    TAKEN,
    Login,
    LoginRecord,
)
from cluster.shared.user_records import SecondLogin

__all__ = ["Ask", "Command", "UserDirectory"]

Command = tuple[int, LoginRecord]
"""What a node, maybe this one, is to be given."""

_Place = tuple[int, int]  # node, session


class Ask(NamedTuple):
    """A session wants to be a user."""

    user: str
    login: Login
    request: int
    policy: SecondLogin
    is_late: bool = False
    """Whether it was asked before a cut: what counts is when, not that it comes now."""

    @property
    def place(self) -> _Place:
        """The node and the session."""
        return self.login[1:]


class _Contest:
    """Asks that are rejected if the user's session turns out to be there."""

    __slots__ = ("asks", "since")

    def __init__(self, since: float) -> None:
        self.since = since
        self.asks: dict[_Place, Ask] = {}  # in order


class UserDirectory:
    """The users of one owner. For the dispatching thread.

    Bounded by the sessions of all nodes: each is at most one user here, and asks for at most one.
    `now` is any clock's time in seconds that does not go back. Methods return the commands that
    follow; those for one node are to reach it in their order.
    """

    __slots__ = ("_awaited", "_contests", "_early", "_logins", "_unconfirmed")

    def __init__(self) -> None:
        self._logins: dict[str, Login] = {}
        self._contests: dict[str, _Contest] = {}
        self._unconfirmed: dict[int, set[str]] = {}
        self._awaited: set[int] = set()
        self._early: dict[_Place, Ask] = {}

    def __len__(self) -> int:
        return len(self._logins)

    def find(self, user: str) -> Login | None:
        """Return the session that `user` is."""
        return self._logins.get(user)

    @property
    def has_contests(self) -> bool:
        """Whether any ask waits for a `CHECKED`."""
        return bool(self._contests)

    # -- what sessions ask for ---------------------------------------------------------------------

    def ask(self, ask: Ask, now: float) -> list[Command]:
        """A session wants to be a user; answered now or later, once, if it does not give up."""
        if self._awaited:
            self._early[ask.place] = ask
            return []
        return self._decide(ask, now)

    def _decide(self, ask: Ask, now: float) -> list[Command]:
        holder = self._logins.get(ask.user)
        login = ask.login
        # A node knows which of its own sessions is there, and asks only if that one may go.
        if holder is not None and holder.node != login.node:
            if ask.is_late and holder > login:
                return self._reject_late(ask, holder)
            if ask.policy is SecondLogin.REJECT:
                return self._contest(ask, holder, now)
        return self._grant(ask)

    def _reject_late(self, ask: Ask, holder: Login) -> list[Command]:
        """A later login has been decided: this one had the user until then, or never."""
        if ask.policy is SecondLogin.REJECT:
            return [_answer(ask, 0)]
        return [_answer(ask, ask.login.stamp), _taken(ask.user, ask.login, holder)]

    def _contest(self, ask: Ask, holder: Login, now: float) -> list[Command]:
        contest = self._contests.get(ask.user)
        if contest is not None:
            contest.asks[ask.place] = ask
            return []
        self._contests[ask.user] = contest = _Contest(now)
        contest.asks[ask.place] = ask
        return [(holder.node, LoginRecord(CHECK, holder.session, user=ask.user))]

    def _grant(self, ask: Ask) -> list[Command]:
        holder, login = self._logins.get(ask.user), ask.login
        stamp = login.stamp
        if holder is not None:
            above = min(holder.stamp + (holder[1:] != login[1:]), STAMP_MAX)
            stamp = max(stamp, above)
        commands = self._take(ask.user, login._replace(stamp=stamp))
        return [_answer(ask, stamp), *commands]

    def _take(self, user: str, login: Login) -> list[Command]:
        """Let `user` be another session from now on."""
        holder = self._logins.get(user)
        self._logins[user] = login
        self._confirm(user, login)
        commands = self._reject_contest(user, login)
        if holder is not None and holder.node != login.node:
            commands.append(_taken(user, holder, login))
        return commands

    def _reject_contest(self, user: str, login: Login | None) -> list[Command]:
        contest = self._contests.pop(user, None)
        if contest is None:
            return []
        place = None if login is None else login[1:]
        return [_answer(ask, 0) for ask in contest.asks.values() if ask.place != place]

    def checked(
        self, user: str, node: int, session: int, is_held: bool, now: float
    ) -> list[Command]:
        """The holder's node has looked whether its session is there."""
        holder = self._logins.get(user)
        if user not in self._contests or holder is None or holder[1:] != (node, session):
            return []  # something else has decided meanwhile
        if is_held:
            return self._reject_contest(user, None)
        del self._logins[user]
        return self._reconsider(user, now)

    def expire(self, before: float) -> list[Command]:
        """The holders that were to be checked since `before` cannot be reached: they give way."""
        commands = []
        for user in [user for user, each in self._contests.items() if each.since <= before]:
            commands += self._overrule(user)
        return commands

    def unreachable(self, user: str) -> list[Command]:
        """The holder cannot be asked whether its session is there: it gives way."""
        return self._overrule(user) if user in self._contests else []

    def _overrule(self, user: str) -> list[Command]:
        asks = self._contests[user].asks
        if asks:
            return self._grant(next(iter(asks.values())))
        del self._contests[user]
        return []

    def _reconsider(self, user: str, now: float) -> list[Command]:
        contest = self._contests.pop(user, None)
        commands = []
        if contest is not None:
            for ask in contest.asks.values():
                commands += self._decide(ask, now)
        return commands

    # -- what nodes tell ---------------------------------------------------------------------------

    def hold(self, user: str, login: Login) -> list[Command]:
        """A node says that its session is `user`: it decided so alone, or this node began anew."""
        self._drop_ask(user, login[1:])
        holder = self._logins.get(user)
        if holder is not None and holder[1:] == login[1:]:
            self._logins[user] = max(holder, login)
            self._confirm(user, login)
            return []
        if holder is None or holder.node == login.node or login > holder:
            return self._take(user, login)
        return [_taken(user, login, holder)]

    def free(self, user: str, node: int, session: int, now: float) -> list[Command]:
        """A node says that its session is `user` no more, and does not ask for it."""
        self._drop_ask(user, (node, session))
        holder = self._logins.get(user)
        if holder is None or holder[1:] != (node, session):
            return []
        del self._logins[user]
        return self._reconsider(user, now)

    def _drop_ask(self, user: str, place: _Place) -> None:
        early = self._early.get(place)
        if early is not None and early.user == user:
            del self._early[place]
        contest = self._contests.get(user)
        if contest is not None:
            contest.asks.pop(place, None)

    def begin(self, node: int) -> None:
        """All users of `node` follow, by `hold`, until `end`."""
        self._unconfirmed[node] = {
            user for user, login in self._logins.items() if login.node == node
        }

    def end(self, node: int, now: float) -> list[Command]:
        """All users of `node` were told: what is known of it beyond those is wrong."""
        commands = []
        for user in self._unconfirmed.pop(node, ()):
            login = self._logins.get(user)
            if login is not None and login.node == node:
                commands += self.free(user, node, login.session, now)
        self.give_up(node)
        return commands

    def _confirm(self, user: str, login: Login) -> None:
        unconfirmed = self._unconfirmed.get(login.node)
        if unconfirmed is not None:
            unconfirmed.discard(user)

    # -- nodes -------------------------------------------------------------------------------------

    @property
    def is_complete(self) -> bool:
        """Whether no node may have users that are not known here; until then nothing is decided."""
        return not self._awaited

    def await_nodes(self, nodes: Iterable[int]) -> None:
        """Decide nothing before each of `nodes` has told its users (`end`), or is given up.

        Then `decide_early` is to be called.
        """
        self._awaited |= set(nodes)

    def give_up(self, node: int) -> None:
        """Wait for the users of `node` no more."""
        self._awaited.discard(node)

    def decide_early(self, now: float) -> list[Command]:
        """Decide what was asked before it was complete, which it is now."""
        assert self.is_complete
        early, self._early = self._early, {}
        commands = []
        for ask in early.values():
            commands += self._decide(ask, now)
        return commands

    def forget_node(self, node: int, now: float) -> list[Command]:
        """`node` began another life, or left: none of its sessions is there any more."""
        self._unconfirmed.pop(node, None)
        self._early = {place: ask for place, ask in self._early.items() if place[0] != node}
        for contest in self._contests.values():
            contest.asks = {place: ask for place, ask in contest.asks.items() if place[0] != node}
        commands = []
        for user in [user for user, login in self._logins.items() if login.node == node]:
            del self._logins[user]
            commands += self._reconsider(user, now)
        return commands

    def keep(self, is_owned: Callable[[str], bool]) -> None:
        """Forget the users whose key another node owns now; their nodes tell that one."""
        for user in [user for user in self._logins if not is_owned(user)]:
            del self._logins[user]
            self._contests.pop(user, None)
        self._early = {place: ask for place, ask in self._early.items() if is_owned(ask.user)}

    def check_invariants(self) -> None:
        """Raise AssertionError unless contests are about users that other nodes have."""
        for user, contest in self._contests.items():
            holder = self._logins[user]
            assert all(ask.user == user for ask in contest.asks.values())
            assert all(place == ask.place for place, ask in contest.asks.items())
            assert holder.node not in {node for node, _ in contest.asks}
        assert not self._early or self._awaited


def _answer(ask: Ask, stamp: int) -> Command:
    """Answer that the session is the user since `stamp`, 0: that it is not."""
    _, node, session = ask.login
    return node, LoginRecord(ANSWER, session, stamp, ask.request, int(stamp != 0), ask.user)


def _taken(user: str, loser: Login, winner: Login) -> Command:
    return loser.node, LoginRecord(TAKEN, loser.session, winner.stamp, user=user)
