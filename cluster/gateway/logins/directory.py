"""Which session each user is whose key this node owns, and who gets one that two ask for.

What is asked is decided in the order in which it comes, so that no clock can evict the newer of
two logins; each login's stamp is above that of the one it follows. Only what nodes decided while
they could not ask, or asked before a cut, is settled by stamps: the later one counts. A session
whose node cannot be reached keeps nobody out. No I/O, no clock.
"""

from collections import Counter
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

__all__ = ["CONTEST_ASKS_MAX", "USERS_MAX", "Ask", "Command", "UserDirectory"]

USERS_MAX = 131_072
"""Users of one node that are kept, and asks of one that wait: more sessions than a gateway serves.
At most 90 MB of each, with names of 255 bytes."""

CONTEST_ASKS_MAX = 1_024
"""Asks that wait for one holder; more are rejected, as they will be if it is there."""

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
    A node that says otherwise finds no more than `USERS_MAX` kept: a session beyond that gets its
    user, but is not found here. `now` is any clock's time in seconds that does not go back. Methods
    return the commands that follow; those for one node are to reach it in their order.
    """

    __slots__ = (
        "_awaited",
        "_contests",
        "_early",
        "_early_counts",
        "_logins",
        "_unconfirmed",
        "_users",
        "on_unkept",
    )

    def __init__(self) -> None:
        self.on_unkept: Callable[[], None] = lambda: None
        """Called when a user, or an ask that waits, is not kept: its node has too many."""
        self._logins: dict[str, Login] = {}
        self._users: dict[int, dict[str, None]] = {}  # of each node, but for those unconfirmed
        self._contests: dict[str, _Contest] = {}
        self._unconfirmed: dict[int, dict[str, None]] = {}
        self._awaited: set[int] = set()
        self._early: dict[_Place, Ask] = {}
        self._early_counts: Counter[int] = Counter()  # of each node

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
            self._wait_early(ask)
            return []
        return self._decide(ask, now)

    def _wait_early(self, ask: Ask) -> None:
        node = ask.login.node
        if ask.place not in self._early:
            if self._early_counts[node] == USERS_MAX:
                self.on_unkept()  # whoever asks decides alone when this takes too long
                return
            self._early_counts[node] += 1
        self._early[ask.place] = ask

    def _decide(self, ask: Ask, now: float) -> list[Command]:
        holder = self._logins.get(ask.user)
        login = ask.login
        if holder is not None and holder[1:] != login[1:]:
            if ask.is_late and holder > login and holder.node != login.node:
                return self._reject_late(ask, holder)
            # Also where both are of one node, which asks before it knows of the first answer.
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
            if len(contest.asks) == CONTEST_ASKS_MAX and ask.place not in contest.asks:
                return [_answer(ask, 0)]
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
        holder = self._drop(user)
        self._keep(user, login)
        commands = self._reject_contest(user, login)
        if holder is not None and holder.node != login.node:
            commands.append(_taken(user, holder, login))
        return commands

    def _keep(self, user: str, login: Login) -> None:
        node = login.node
        users = self._users.setdefault(node, {})
        if len(users) + len(self._unconfirmed.get(node, ())) < USERS_MAX:
            users[user] = None
            self._logins[user] = login
        else:
            self.on_unkept()

    def _drop(self, user: str) -> Login | None:
        """Forget who `user` is, and return who that was."""
        login = self._logins.pop(user, None)
        if login is not None:
            for users in (self._users, self._unconfirmed):
                if login.node in users:
                    users[login.node].pop(user, None)
        return login

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
        self._drop(user)
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
            self._drop(user)
            self._keep(user, max(holder, login))  # which confirms it
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
        self._drop(user)
        return self._reconsider(user, now)

    def _drop_ask(self, user: str, place: _Place) -> None:
        early = self._early.get(place)
        if early is not None and early.user == user:
            del self._early[place]
            self._early_counts[place[0]] -= 1
        contest = self._contests.get(user)
        if contest is not None:
            contest.asks.pop(place, None)

    def begin(self, node: int) -> None:
        """All users of `node` follow, by `hold`, until `end`."""
        # A copy would cost each time as much as there is: here it is what was told since.
        confirmed = self._users.pop(node, {})
        self._unconfirmed.setdefault(node, confirmed).update(confirmed)

    def end(self, node: int, now: float) -> list[Command]:
        """All users of `node` were told: what is known of it beyond those is wrong."""
        commands = []
        for user in self._unconfirmed.pop(node, ()):
            commands += self.free(user, node, self._logins[user].session, now)
        self.give_up(node)
        return commands

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
        self._early_counts.clear()
        commands = []
        for ask in early.values():
            commands += self._decide(ask, now)
        return commands

    def forget_node(self, node: int, now: float) -> list[Command]:
        """`node` began another life, or left: none of its sessions is there any more."""
        users = self._unconfirmed.pop(node, {}) | self._users.pop(node, {})
        self._early = {place: ask for place, ask in self._early.items() if place[0] != node}
        del self._early_counts[node]
        for contest in self._contests.values():
            contest.asks = {place: ask for place, ask in contest.asks.items() if place[0] != node}
        commands = []
        for user in users:
            del self._logins[user]
        for user in users:
            commands += self._reconsider(user, now)
        return commands

    def keep(self, is_owned: Callable[[str], bool]) -> None:
        """Forget the users whose key another node owns now; their nodes tell that one."""
        for user in [user for user in self._logins if not is_owned(user)]:
            self._drop(user)
            self._contests.pop(user, None)
        self._early = {place: ask for place, ask in self._early.items() if is_owned(ask.user)}
        self._early_counts = Counter(node for node, _ in self._early)

    def check_invariants(self) -> None:
        """Raise AssertionError unless contests are about users that other sessions have."""
        for user, contest in self._contests.items():
            holder = self._logins[user]
            assert all(ask.user == user for ask in contest.asks.values())
            assert all(place == ask.place for place, ask in contest.asks.items())
            assert holder[1:] not in contest.asks
            assert len(contest.asks) <= CONTEST_ASKS_MAX
        assert not self._early or self._awaited
        assert +self._early_counts == Counter(node for node, _ in self._early)
        kept = [
            (user, node)
            for users in (self._users, self._unconfirmed)
            for node, names in users.items()
            for user in names
        ]
        assert len(kept) == len(self._logins)
        assert set(kept) == {(user, login.node) for user, login in self._logins.items()}
        assert all(count <= USERS_MAX for count in Counter(node for _, node in kept).values())


def _answer(ask: Ask, stamp: int) -> Command:
    """Answer that the session is the user since `stamp`, 0: that it is not."""
    _, node, session = ask.login
    return node, LoginRecord(ANSWER, session, stamp, ask.request, int(stamp != 0), ask.user)


def _taken(user: str, loser: Login, winner: Login) -> Command:
    return loser.node, LoginRecord(TAKEN, loser.session, winner.stamp, user=user)
