"""What can be a handler: a plain or a coroutine function that takes what it will be called with."""

import functools
import inspect
from collections.abc import Callable, Coroutine
from typing import Any

from cluster.worker.payload_annotation import find_signature, handler_name

__all__ = [
    "check_function",
    "check_handler",
    "check_handler_of_either",
    "is_coroutine_function",
    "refuse_coroutine",
]


def check_handler(handler: Callable[..., Any], *parameters: str) -> None:
    """Raise TypeError unless `handler` can be called with `parameters`.

    What does not say what it takes, as some of what is made in C, is found out when it is called.
    """
    shape = f"({', '.join(parameters)})"
    if not callable(handler):
        raise TypeError(f"a handler is a function {shape}, not {handler!r}")
    name = handler_name(handler)
    called = _called(handler)
    if inspect.isasyncgenfunction(called) or inspect.isgeneratorfunction(called):
        raise TypeError(f"handler {name} is a generator; it must not yield")
    signature = find_signature(handler)
    if signature is None:
        return
    try:
        signature.bind(*parameters)
    except TypeError:
        taken = signature.replace(return_annotation=inspect.Signature.empty)
        raise TypeError(f"handler {name} must take {shape}; it takes {taken}") from None


def check_handler_of_either(handler: Callable[..., Any], last: str, *parameters: str) -> bool:
    """Return whether `handler` has to be called with one more than `parameters`, `last`.

    One that can be called without is; raises TypeError if it can be called in neither way.
    """
    try:
        check_handler(handler, *parameters)
    except TypeError as error:
        try:
            check_handler(handler, *parameters, last)
        except TypeError:
            raise error from None
        return True
    return False


def check_function(function: object, call: str) -> None:
    """Raise TypeError unless `function` can be called, as what is given to `call` has to."""
    if not callable(function):
        if isinstance(function, Coroutine):
            function.close()  # or it would be said that nobody has awaited it, too
        raise TypeError(f"{call} takes a function, not {function!r}; give it without calling it")


def is_coroutine_function(handler: Callable[..., Any]) -> bool:
    """Return whether calling `handler` makes a coroutine; it may be any object that is called."""
    return inspect.iscoroutinefunction(_called(handler))


def _called(handler: Any) -> Any:
    """Return the function that is called in the end, for a partial, or an object with one."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    if inspect.isroutine(handler) or isinstance(handler, type):
        return handler
    return handler if inspect.iscoroutinefunction(handler) else handler.__call__


def refuse_coroutine(handler: Callable[..., Any], result: object) -> None:
    """Raise TypeError if `result` of a `handler` that looked like a plain function is a coroutine.

    For handlers that are called otherwise if they are coroutine functions.
    """
    if isinstance(result, Coroutine):
        result.close()
        raise TypeError(
            f"handler {handler_name(handler)} returned a coroutine; make it a coroutine function "
            "(async def) itself"
        )
