"""Warnings that point at the line of the person who called, whatever thread or loop does the work."""

from __future__ import annotations

import inspect
import warnings
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from mqttquic_lab.errors import BrokerProfileWarning

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from types import FrameType

T = TypeVar("T")

PACKAGE = __name__.partition(".")[0]


class CallSite(NamedTuple):
    """A line of code outside this package, and where Python notes that it was warned about."""

    filename: str
    line: int
    module: str
    registry: dict[Any, Any]


_caller: ContextVar[CallSite | None] = ContextVar("mqttquic_caller", default=None)


@contextmanager
def called_from_here() -> Iterator[None]:
    """Have warnings of what is started within this block point at the caller of the package."""
    token = _caller.set(_find(inspect.currentframe()))
    try:
        yield
    finally:
        _caller.reset(token)


def carried(verb: Callable[..., Coroutine[Any, Any, T]], /, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, T]:
    """Call `verb` so that it knows its caller on whatever loop it runs: runtimes start work in an empty context."""
    site = _caller.get()
    if site is None:
        return verb(*args, **kwargs)

    async def knowing() -> T:
        token = _caller.set(site)
        try:
            return await verb(*args, **kwargs)
        finally:
            _caller.reset(token)

    knowing.__name__ = verb.__name__  # runtimes name their work by it
    return knowing()


def warn_of(refusal: str, category: type[Warning] = BrokerProfileWarning) -> None:
    """Warn that the broker is known to refuse something; once per line of the caller (Python's own filter)."""
    site = _caller.get() or _find(inspect.currentframe())
    if site is None:
        warnings.warn(refusal, category, stacklevel=2)
    else:
        warnings.warn_explicit(refusal, category, site.filename, site.line, module=site.module, registry=site.registry)


def _find(frame: FrameType | None) -> CallSite | None:
    """Return the nearest frame that is not of this package."""
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module != PACKAGE and not module.startswith((f"{PACKAGE}.", "contextlib")):
            return CallSite(
                frame.f_code.co_filename,
                frame.f_lineno,
                module,
                frame.f_globals.setdefault("__warningregistry__", {}),
            )
        frame = frame.f_back
    return None
