"""What can be a handler: a plain or a coroutine function that takes what it will be called with."""

import inspect
from collections.abc import Callable, Coroutine
from typing import Any

from cluster.worker.payload_annotation import handler_name

__all__ = ["check_function", "check_handler", "is_coroutine_function", "refuse_coroutine"]


def check_handler(handler: Callable[..., Any], *parameters: str) -> None:
    """Raise TypeError unless `handler` can be called with `parameters`."""
    shape = f"({', '.join(parameters)})"
    if not callable(handler):
        raise TypeError(f"a handler is a function {shape}, not {handler!r}")
    name = handler_name(handler)
    if inspect.isasyncgenfunction(handler) or inspect.isgeneratorfunction(handler):
        raise TypeError(f"handler {name} is a generator; it must not yield")
    signature = inspect.signature(handler)
    try:
        signature.bind(*parameters)
    except TypeError:
        taken = signature.replace(return_annotation=inspect.Signature.empty)
        raise TypeError(f"handler {name} must take {shape}; it takes {taken}") from None


def check_function(function: object, call: str) -> None:
    """Raise TypeError unless `function` can be called, as what is given to `call` has to."""
    if not callable(function):
        if isinstance(function, Coroutine):
            function.close()  # or it would be said that nobody has awaited it, too
        raise TypeError(f"{call} takes a function, not {function!r}; give it without calling it")


def is_coroutine_function(handler: Callable[..., Any]) -> bool:
    """Return whether calling `handler` makes a coroutine; it may be any object that is called."""
    call = getattr(handler, "__call__", None)  # noqa: B004 - of an object that can be called
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(call)


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
