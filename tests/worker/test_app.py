"""An App collects handlers and says at once which one cannot work."""

import math
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import msgspec
import pytest

from cluster.iocp.packet_framing import make_packet
from cluster.worker import App, Session, ShardId
from cluster.worker.app_timers import AppTimers
from cluster.worker.handlers import Handlers
from cluster.worker.outbox import Outbox
from cluster.worker.runtime import Runtime
from cluster.worker.saved_state import SavedState
from cluster.worker.tells import granted_tells
from tests.worker.dispatchers import make_grant


def test_handlers_are_found_by_packet_id():
    app = App()

    @app.on_packet(1)
    def one(session: Session, payload: bytes) -> None: ...

    @app.on_packet(65_535)
    def two(session: Session, payload: bytes) -> None: ...

    assert app.packet_handlers == {1: one, 65_535: two}


def test_a_registered_handler_stays_what_it_was():
    app = App()

    def any_(session, packet_id, payload): ...
    def one(session): ...
    def ended(session, cause): ...

    assert app.on_any(any_) is any_ is app.any_handler
    assert app.on_connected(one) is one is app.connected_handler
    assert app.on_resumed(one) is one is app.resumed_handler
    assert app.on_disconnected(ended) is ended is app.disconnected_handler
    assert app.on_packet(5)(one_with_payload) is one_with_payload


def one_with_payload(session, payload): ...


@pytest.mark.parametrize("packet_id", [-1, 65_536, 1 << 40])
def test_an_id_that_no_packet_has_is_refused(packet_id: int):
    with pytest.raises(ValueError, match=f"{packet_id} is not between 0 and 65535"):
        App().on_packet(packet_id)


def test_a_second_handler_of_the_same_id_is_refused_with_the_name_of_the_first():
    app = App()
    app.on_packet(3)(one_with_payload)
    with pytest.raises(ValueError, match="3 has the handler one_with_payload already"):
        app.on_packet(3)


def test_a_handler_of_another_shape_is_told_as_it_was_written():
    def by_name(session, *, payload: bytes) -> None: ...

    with pytest.raises(TypeError, match=r"it takes \(session, \*, payload: bytes\)$"):
        App().on_packet(1)(by_name)  # type: ignore[type-var]


@pytest.mark.parametrize(
    ("register", "shape"),
    [
        (App.on_any, "session, packet_id, payload"),
        (App.on_connected, "session"),
        (App.on_resumed, "session"),
        (App.on_disconnected, "session, cause"),
        (lambda app, handler: app.on_packet(1)(handler), "session, payload"),
    ],
)
def test_a_handler_of_another_shape_is_refused_when_it_is_registered(register, shape: str):
    app = App()
    count = shape.count(",") + 1
    for wrong in (lambda: None, lambda a, b, c, d: None):
        with pytest.raises(TypeError, match=rf"must take \({shape}\)"):
            register(app, wrong)
    with pytest.raises(TypeError, match="a handler is a function"):
        register(app, "not a function")

    async def coroutine(a, b, c, d): ...

    with pytest.raises(TypeError, match=rf"must take \({shape}\)"):
        register(app, coroutine)

    def generator(*args):
        yield

    async def async_generator(*args):
        yield

    class Generator:
        def __call__(self, *args):
            yield

    for wrong in (generator, async_generator, Generator(), partial(Generator())):
        with pytest.raises(TypeError, match="is a generator; it must not yield"):
            register(app, wrong)
    assert not app.has_coroutines
    # More parameters are fine where they have defaults, and so is anything that can be called.
    register(app, lambda *args: None if len(args) == count else 1 / 0)


def test_a_decorator_without_what_it_is_to_be_given_says_how_it_is_written():
    app, forgotten = App(), cast("Any", one_with_payload)
    with pytest.raises(TypeError, match=r"not <function .*>; write @app.on_packet\(1\)"):
        app.on_packet(forgotten)
    with pytest.raises(TypeError, match=r"not <function .*>; write @app.every\(1.0\)"):
        app.every(forgotten)


@pytest.mark.parametrize(
    "name",
    [name for name in sorted(vars(Handlers)) if name.startswith("on_") and name != "on_packet"],
)
def test_a_decorator_with_brackets_that_it_does_not_take_says_how_it_is_written(name: str):
    app = App()
    with pytest.raises(TypeError, match=rf"^{name} .* no handler; write @app.{name} without brack"):
        getattr(app, name)()


def test_methods_and_callable_objects_can_be_handlers():
    class Game:
        def joined(self, session): ...
        def __call__(self, session, payload): ...

    app, game = App(), Game()
    app.on_connected(game.joined)
    app.on_packet(1)(game)
    assert app.packet_handlers[1] is game


@pytest.mark.parametrize("handler", [max, partial(max, 1), {}.update])
def test_what_is_made_in_c_and_does_not_say_what_it_takes_can_be_a_handler(handler: Any):
    app = App()
    app.on_packet(1)(handler)
    app.on_any(handler)
    app.on_connected(handler)
    app.on_start(handler)
    app.every(1)(handler)
    app.on_undelivered(handler)
    assert app.packet_handlers[1] is handler
    assert not app.has_coroutines


async def _function(session): ...


class _Callable:
    async def __call__(self, session): ...


@pytest.mark.parametrize(
    "handler",
    [_function, _Callable(), _Callable().__call__, partial(_function), partial(_Callable())],
)
def test_an_application_knows_whether_any_handler_is_a_coroutine_function(handler):
    app = App()
    app.on_connected(lambda session: None)
    assert not app.has_coroutines
    app.on_resumed(handler)
    assert app.has_coroutines


def test_at_least_one_coroutine_has_to_be_allowed():
    assert App(coroutines_max=1).coroutines_max == 1
    with pytest.raises(ValueError, match="coroutines_max=0; give 1 or more"):
        App(coroutines_max=0)
    assert App(coroutines_waiting_max=0).coroutines_waiting_max == 0
    with pytest.raises(ValueError, match="coroutines_waiting_max=-1; give 0 or more"):
        App(coroutines_waiting_max=-1)


def test_public_ids_are_those_that_are_declared_so():
    app = App()
    app.on_packet(1, public=True)(lambda session, payload: None)
    app.on_packet(2)(lambda session, payload: None)
    app.on_packet(0xFFFF, public=True)(lambda session, payload: None)
    assert app.public_ids == {1, 0xFFFF}


def test_a_handler_that_is_refused_makes_no_id_public():
    app = App()
    with pytest.raises(TypeError):
        app.on_packet(1, public=True)(lambda session: None)  # type: ignore[type-var]
    assert app.public_ids == set()


def test_a_broadcast_needs_a_running_worker():
    with pytest.raises(RuntimeError, match="running worker"):
        App().broadcast(1, b"x")


class Noted(Runtime):
    """Notes what is to be sent, and how often it is woken."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.sent_to: list[tuple[bytes, bytes]] = []
        self.kicked: list[tuple[bytes, bytes]] = []
        self.published: list[tuple[bytes, bytes, int]] = []
        self.wakes = 0
        self.timers = AppTimers()
        outbox = Outbox(1 << 20)
        tells = granted_tells(make_grant(), outbox, lambda: False)
        saved_state = SavedState(outbox, {}, 0)
        super().__init__(
            outbox, 65_535, tells, saved_state, {}, self.timers, lambda: 0.0, self._woken
        )

    def broadcast(self, packet: bytes) -> None:
        self.sent.append(packet)

    def send_to(self, user: bytes, packet: bytes) -> None:
        self.sent_to.append((user, packet))

    def kick_user(self, user: bytes, packet: bytes) -> None:
        self.kicked.append((user, packet))

    def send_group(self, name: bytes, packet: bytes, left_out: int) -> None:
        self.published.append((name, packet, left_out))

    def _woken(self) -> None:
        self.wakes += 1


def test_a_broadcast_is_one_packet():
    app, runtime = App(), Noted()
    app._attach(runtime)
    app.broadcast(7, b"abc")
    assert runtime.sent == [b"\x07\x00\x07\x00abc"]
    for packet_id, payload in ((65_536, b""), (-1, b""), (1, b"x" * 65_532)):
        with pytest.raises(ValueError, match=r"packet|payload"):
            app.broadcast(packet_id, payload)
    assert len(runtime.sent) == 1


def test_a_send_to_is_one_packet_for_one_user():
    app, runtime = App(), Noted()
    with pytest.raises(RuntimeError, match="running worker"):
        app.send_to("ann", 7, b"abc")
    app._attach(runtime)
    app.send_to("ann", 7, b"abc")
    assert runtime.sent_to == [(b"ann", b"\x07\x00\x07\x00abc")]
    for user, packet_id, payload in (("", 1, b""), ("ann", 65_536, b""), ("ann", 1, b"x" * 65_532)):
        with pytest.raises(ValueError, match=r"user id|packet|payload"):
            app.send_to(user, packet_id, payload)
    assert len(runtime.sent_to) == 1


def test_a_kick_is_one_packet_for_one_user():
    app, runtime = App(), Noted()
    with pytest.raises(RuntimeError, match="running worker"):
        app.kick_user("ann", 7, b"abc")
    app._attach(runtime)
    app.kick_user("ann", 7, b"abc")
    app.kick_user("bob", 7)
    assert runtime.kicked == [(b"ann", b"\x07\x00\x07\x00abc"), (b"bob", b"\x04\x00\x07\x00")]
    for user, packet_id, payload in (("", 1, b""), ("ann", 65_536, b""), ("ann", 1, b"x" * 65_532)):
        with pytest.raises(ValueError, match=r"user id|packet|payload"):
            app.kick_user(user, packet_id, payload)
    assert len(runtime.kicked) == 2


def test_a_publish_names_a_group_and_whom_to_leave_out():
    app, runtime = App(), Noted()
    with pytest.raises(RuntimeError, match="running worker"):
        app.publish("room", 1, b"x")
    app._attach(runtime)
    session = Session(5, "there", Outbox(1 << 20), 65_531)
    app.publish("room", 7, b"abc")
    app.publish("room", 7, b"abc", exclude=session)
    assert runtime.published == [
        (b"room", b"\x07\x00\x07\x00abc", 0),
        (b"room", b"\x07\x00\x07\x00abc", 5),
    ]
    for name, packet_id, payload in (("", 1, b""), ("r" * 256, 1, b""), ("r", 65_536, b"")):
        with pytest.raises(ValueError, match=r"group name|packet"):
            app.publish(name, packet_id, payload)
    with pytest.raises(TypeError, match="group name is a str"):
        app.publish(b"room", 1)  # type: ignore[arg-type]


class Said(msgspec.Struct):
    text: str


def test_a_struct_goes_to_all_and_to_one_by_the_codec_of_the_application():
    app, runtime = App(codec="json"), Noted()
    app._attach(runtime)
    app.broadcast(7, Said("hi"))
    app.send_to("ann", 8, Said("hi"))
    app.publish("room", 9, Said("hi"))
    assert runtime.sent == [make_packet(7, b'{"text":"hi"}')]
    assert runtime.sent_to == [(b"ann", make_packet(8, b'{"text":"hi"}'))]
    assert runtime.published == [(b"room", make_packet(9, b'{"text":"hi"}'), 0)]
    for wrong in ("hi", ["hi"], None):
        with pytest.raises(TypeError, match=f"not {type(wrong).__name__}; "):
            app.broadcast(7, wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=f"not {type(wrong).__name__}; "):
            app.send_to("ann", 7, wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=f"not {type(wrong).__name__}; "):
            app.publish("room", 7, wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("policy", ["replace", "reject"])
def test_what_becomes_of_a_second_login_is_one_of_two(policy):
    assert App(second_login=policy).second_login.name.lower() == policy
    assert App().second_login.name == "REPLACE"


@pytest.mark.parametrize("policy", ["kick", "", None, ["replace"]])
def test_another_policy_for_a_second_login_is_refused(policy):
    with pytest.raises(ValueError, match=r"second_login=.*; choose one of replace, reject"):
        App(second_login=policy)


def test_every_collects_functions_with_their_intervals():
    app = App()

    @app.every(0.05)
    @app.every(10)
    def tick() -> None: ...

    assert app.repeated == [(10.0, tick), (0.05, tick)]


@pytest.mark.parametrize("seconds", [0, -1, 0.0009, math.inf, math.nan])
def test_every_takes_no_interval_that_the_loop_cannot_keep(seconds: float):
    with pytest.raises(ValueError, match=r"every .* seconds: give 0.001 or more"):
        App().every(seconds)


def test_every_takes_functions_without_parameters():
    app = App()
    one_argument: Any = lambda session: None  # noqa: E731 - what a type checker refuses
    with pytest.raises(TypeError, match="must take"):
        app.every(1)(one_argument)
    assert app.repeated == []


def of_said(message: Said, sender: ShardId) -> None: ...


@pytest.mark.parametrize("name", ["on_packet", "on_message", "every"])
def test_a_decorator_of_the_import_registers_nothing_in_a_running_worker(name: str):
    app = App()
    given = {"on_packet": 1, "on_message": Said, "every": 1.0}[name]
    early = getattr(app, name)(given)
    app._attach(Noted())
    with pytest.raises(RuntimeError, match=f"^{name} is for the import"):
        early(lambda *args: None)
    assert (app.packet_handlers, app.messages.by_name, app.repeated) == ({}, {}, [])


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("on_packet", 1),
        ("every", 1.0),
        ("on_message", of_said),
        ("on_any", print),
        ("on_packets", print),
        ("on_start", print),
        ("on_stop", print),
        ("on_connected", print),
        ("on_resumed", print),
        ("on_disconnected", print),
        ("on_bound", print),
        ("on_joined", print),
        ("on_send_blocked", print),
        ("on_send_ready", print),
        ("on_undelivered", print),
        ("on_keys", print),
        ("on_drain", print),
    ],
)
def test_nothing_is_registered_in_a_running_worker(name: str, given: Any):
    app, runtime = App(), Noted()
    app._attach(runtime)
    remedy = "use call_later" if name == "every" else "have a handler there that calls"
    with pytest.raises(RuntimeError, match=rf"^{name} is for the import .*; .*{remedy}"):
        getattr(app, name)(given)
    app._detach(runtime)
    getattr(app, name)(given)


def test_call_later_is_the_runtimes_and_needs_one():
    app, runtime = App(), Noted()
    ran: list[str] = []
    with pytest.raises(RuntimeError, match="on_start"):
        app.call_later(1, ran.append, "early")
    app._attach(runtime)
    for seconds in (-1, math.inf, math.nan):
        with pytest.raises(ValueError, match="give 0 or more"):
            app.call_later(seconds, ran.append, "wrong")
    app.call_later(2, ran.append, "two")
    assert runtime.timers.next_due() == 2
    function = runtime.timers.take_due(2, runtime.timers.newest())
    assert function is not None
    function()
    assert ran == ["two"]


def test_a_type_checker_holds_the_arguments_of_call_later_against_the_function():
    """What is ignored here is an error to mypy, which says so where it is none any more."""
    app = App()
    app._attach(Noted())

    def remind(session: Session, text: str, *, loud: bool = False) -> None: ...

    async def repeat(text: str, times: int = 1) -> None: ...

    session: Session = cast("Session", None)
    app.call_later(1, remind, session, "hello")
    app.call_later(1, repeat, "hello")
    app.call_later(1, repeat, "hello", 2)
    app.call_later(1, partial(repeat, "hello"), 2)
    app.call_later(1, print, "hello", 2)
    app.call_later(1, lambda text: text, "hello")
    app.call_later(1, remind, session)  # type: ignore[arg-type]
    app.call_later(1, remind, "hello", session)  # type: ignore[arg-type]
    app.call_later(1, repeat, "hello", 2, 3)  # type: ignore[arg-type]


def test_call_later_and_post_refuse_what_was_called_instead_of_given():
    """At their due time nobody could say any more where the mistake is."""
    app, runtime = App(), Noted()
    app._attach(runtime)

    async def remind() -> None: ...

    calls: list[Any] = [None, 5, remind()]
    for call in calls:
        with pytest.raises(TypeError, match=r"call_later takes a function, not .*without calling"):
            app.call_later(1, call)
    calls.append(remind())
    for call in calls:
        with pytest.raises(TypeError, match=r"post takes a function, not .*without calling"):
            app.post(call)
    with pytest.raises(TypeError, match="call_later takes seconds and a function, not '1'"):
        app.call_later("1", print)  # type: ignore[arg-type]
    assert runtime.timers.next_due() is None
    assert app._take_posted() == []


def test_a_publish_excludes_sessions_only():
    app = App()
    app._attach(Noted())
    with pytest.raises(TypeError, match="publish excludes a session, not 'ann'"):
        app.publish("room", 1, b"x", exclude="ann")  # type: ignore[arg-type]


def test_what_is_posted_comes_out_once_in_order_and_wakes_the_loop():
    app, runtime = App(), Noted()
    ran: list[int] = []
    app.post(lambda: ran.append(0))  # before there is a worker
    app._attach(runtime)
    for number in range(1, 4):
        app.post(partial(ran.append, number))
    assert runtime.wakes == 3
    for function in app._take_posted():
        function()
    assert ran == [0, 1, 2, 3]
    assert app._take_posted() == []


def test_posts_of_many_threads_all_arrive():
    app, runtime = App(), Noted()
    app._attach(runtime)
    ran: list[tuple[int, int]] = []

    def post(thread: int) -> None:
        for number in range(500):
            app.post(partial(ran.append, (thread, number)))

    threads = [threading.Thread(target=post, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads) or len(ran) < 2_000:
        for function in app._take_posted():
            function()
    assert len(ran) == 2_000
    for poster in range(4):
        assert [number for who, number in ran if who == poster] == list(range(500))


def test_posting_is_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("cluster.worker.app.POSTED_MAX", 2)
    app = App()
    app.post(lambda: None)
    app.post(lambda: None)
    with pytest.raises(RuntimeError, match="2 posted functions wait already"):
        app.post(lambda: None)
    app._take_posted()
    app.post(lambda: None)


@pytest.mark.parametrize(
    ("decorator", "parameters"),
    [
        (App.on_start, ""),
        (App.on_stop, ""),
        (App.on_connected, "session"),
        (App.on_resumed, "session"),
        (App.on_disconnected, "session, cause"),
        (App.on_bound, "session, result"),
        (App.on_joined, "session, name"),
        (App.on_any, "session, packet_id, payload"),
        (App.on_packets, "session, packets"),
        (App.on_send_blocked, "session"),
        (App.on_send_ready, "session"),
        (App.on_keys, "owners"),
        (App.on_drain, "seconds"),
        (App.on_undelivered, "message, receiver"),
    ],
)
def test_a_second_handler_of_the_same_is_refused_and_the_first_one_named(
    decorator: Callable[[App, Any], Any], parameters: str
):
    scope: dict[str, Any] = {}
    exec(f"def first({parameters}): ...\ndef second({parameters}): ...", scope)
    app = App()
    decorator(app, scope["first"])
    with pytest.raises(ValueError, match=f"{decorator.__name__} has the handler first already"):
        decorator(app, scope["second"])
