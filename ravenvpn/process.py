"""Run the event loop of a long-lived process (agent, controller), and end it on an unexpected exception."""

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
    """Run `main` on uvloop to its end; `what` names the process in the log.

    An exception group that contains a RavenError raises that error. Any other exception is logged with its traceback
    and ends in SystemExit(1): a task that died must not leave the others running, and systemd starts the process
    again.

    `allocations` is the threshold of the youngest generation of the cyclic garbage collector. A large world is a
    million objects that stay. To search them for cycles every 700 allocations, the default, takes a tenth of the
    processor time at the start, and pauses later.
    """
    gc.set_threshold(allocations, 20, 50)
    gc.freeze()  # imported modules stay for ever, so the collector need not visit them
    gc.enable()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(main)
        except BaseExceptionGroup as group:
            first = next(_leaves(group))
            if isinstance(first, RavenError):
                raise first from group
            log.critical(
                "this %s ends by an unexpected exception, %s: %s", what, type(first).__name__, first, exc_info=first
            )
            raise SystemExit(1) from group


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    """Yield the exceptions in nested groups, depth first."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
