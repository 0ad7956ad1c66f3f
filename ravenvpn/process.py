"""How a long-lived process of ours runs its loop, and how it ends by a defect."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Coroutine, Iterator
from typing import Any

import uvloop

from ravenvpn.errors import RavenError

log = logging.getLogger(__name__)


def run(main: Coroutine[Any, Any, None], what: str, *, allocations: int) -> None:
    """Run `main` on uvloop to its end. An error of ours inside a group comes out alone; a defect is logged with its
    traceback and ends in SystemExit(1). `what` is this process in that line.

    A large world is a million objects that stay: looking through them for cycles every 700 allocations, as is the
    default, would cost a tenth of the start and pauses later. It is done every `allocations` instead.
    """
    gc.set_threshold(allocations, 20, 50)
    gc.freeze()
    gc.enable()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(main)
        except BaseExceptionGroup as group:
            first = next(_leaves(group))
            if isinstance(first, RavenError):
                raise first from group
            log.critical("a defect ends this %s: %s: %s", what, type(first).__name__, first, exc_info=first)
            raise SystemExit(1) from group


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
