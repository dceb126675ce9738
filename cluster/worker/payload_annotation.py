"""Finds the annotation of the parameter by which a handler takes a payload.

Handlers may be functions, bound methods, `functools.partial` objects, callable objects, and what
wraps one of these and says so (`functools.wraps`). Annotations may be strings, as all are under
`from __future__ import annotations`, or not evaluated yet, as of Python 3.14: only the payload's
own is evaluated, where the handler was defined, so that the others may name what is imported for
type checkers alone.
"""

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any, ForwardRef, NamedTuple, get_type_hints

if sys.version_info >= (3, 14):
    import annotationlib

__all__ = ["PayloadParameter", "find_payload_parameter", "find_signature", "handler_name"]

_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class PayloadParameter(NamedTuple):
    """The parameter that takes the payload, and its annotation; bytes if it has none.

    The name is None if the handler has no such parameter of its own: it takes `*args`, or says
    nothing.
    """

    name: str | None
    annotation: Any


def handler_name(handler: Callable[..., Any]) -> str:
    """Return what to call `handler` in messages."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    return getattr(handler, "__qualname__", None) or repr(handler)


def find_signature(handler: Callable[..., Any]) -> inspect.Signature | None:
    """Return what `handler` takes; None if it does not say, as some of what is made in C."""
    try:
        if sys.version_info >= (3, 14):
            format_ = annotationlib.Format.FORWARDREF  # names that are not defined are left open
            return inspect.signature(handler, annotation_format=format_)
        return inspect.signature(handler)
    except ValueError:
        return None


def find_payload_parameter(handler: Callable[..., Any], index: int) -> PayloadParameter:
    """Return the parameter at `index` of those that `handler` takes by position.

    Raises TypeError for an annotation that cannot be evaluated, naming handler, parameter and
    remedy.
    """
    signature = find_signature(handler)
    parameters = [
        parameter
        for parameter in (signature.parameters.values() if signature is not None else ())
        if parameter.kind in _BY_POSITION
    ]
    if index >= len(parameters):
        return PayloadParameter(None, bytes)
    name, annotation = parameters[index].name, parameters[index].annotation
    if annotation is inspect.Parameter.empty:
        return PayloadParameter(name, bytes)
    try:
        return PayloadParameter(name, _evaluate(annotation, _namespace(handler)))
    except Exception as error:  # an annotation is any expression
        shown = annotation.__forward_arg__ if isinstance(annotation, ForwardRef) else annotation
        raise TypeError(
            f"handler {handler_name(handler)}: the annotation {shown!r} of {name!r} cannot be "
            f"evaluated ({type(error).__name__}: {error}); define or import it at the top level of "
            "the module, above the handler and not under TYPE_CHECKING"
        ) from error


def _evaluate(annotation: Any, namespace: dict[str, Any]) -> Any:
    """Return what `annotation` means, with the strings in it evaluated."""

    def holder() -> None: ...

    holder.__annotations__ = {"payload": annotation}
    return get_type_hints(holder, namespace, include_extras=True)["payload"]


def _namespace(handler: Any) -> dict[str, Any]:
    """Return the globals of the function that is called in the end."""
    while not inspect.isfunction(handler) or hasattr(handler, "__wrapped__"):
        if isinstance(handler, functools.partial):
            handler = handler.func
        elif inspect.ismethod(handler):
            handler = handler.__func__
        elif hasattr(handler, "__wrapped__"):
            handler = handler.__wrapped__
        elif inspect.isfunction(type(handler).__call__):
            handler = type(handler).__call__
        else:
            return {}  # made in C, without annotations
    namespace: dict[str, Any] = handler.__globals__
    return namespace
