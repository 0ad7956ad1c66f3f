"""Processor time of a handshake on one core: ours beside the same Noise library used as documented, in one run.

    python bench/micro_handshake.py [--json FILE]

"naive" is `NoiseConnection` as its documentation shows it: it parses the protocol name, loads every key and computes
every DH for each handshake. "ours" is `ravenvpn.crypto.handshake` with the static key loaded and the static-static
secret cached, as in a running tunnel. Each figure includes the generation of the ephemeral key. The two take turns,
so that other load slows both. Figures are CPU time: the fastest and the median of the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from noise.connection import Keypair, NoiseConnection

from ravenvpn.crypto.aead import Suite
from ravenvpn.crypto.cookie import CookieChecker, CookieStamper
from ravenvpn.crypto.handshake import PROLOGUE, initiate, receive_initiation
from ravenvpn.crypto.keys import PrivateKey

ROUNDS = 30
CALLS = 100  # in each round
TIMESTAMP = bytes(12)  # TAI64N

Step = Callable[[], object]


def naive_initiation(ours: bytes, theirs: bytes, name: bytes) -> tuple[NoiseConnection, bytes]:
    """Return the initiator's connection and its first message."""
    connection = NoiseConnection.from_name(name)
    connection.set_as_initiator()
    connection.set_prologue(PROLOGUE)
    connection.set_psks(psk=bytes(32))
    connection.set_keypair_from_private_bytes(Keypair.STATIC, ours)
    connection.set_keypair_from_public_bytes(Keypair.REMOTE_STATIC, theirs)
    connection.start_handshake()
    return connection, bytes(connection.write_message(TIMESTAMP))


def naive_answer(ours: bytes, initiation: bytes, name: bytes) -> bytes:
    """Return the responder's message."""
    connection = NoiseConnection.from_name(name)
    connection.set_as_responder()
    connection.set_prologue(PROLOGUE)
    connection.set_psks(psk=bytes(32))
    connection.set_keypair_from_private_bytes(Keypair.STATIC, ours)
    connection.start_handshake()
    connection.read_message(initiation)
    return bytes(connection.write_message())


def steps(suite: Suite) -> dict[str, Step]:
    """Return the operations that are measured, by name."""
    near, far, unknown_peer = (PrivateKey.generate(os.urandom) for _ in range(3))
    name = suite.noise_name
    near_raw, far_raw, far_public = near.raw, far.raw, far.public.raw

    def fresh() -> PrivateKey:
        return PrivateKey.generate(os.urandom)

    initiation, _ = initiate(near, far.public, suite, TIMESTAMP, fresh())
    unknown, _ = initiate(unknown_peer, far.public, suite, TIMESTAMP, fresh())

    def ours_whole() -> None:
        body, pending = initiate(near, far.public, suite, TIMESTAMP, fresh())
        response, _ = receive_initiation(far, body, suite).respond(None, fresh())
        pending.finish(response)

    def naive_whole() -> None:
        connection, body = naive_initiation(near_raw, far_public, name)
        connection.read_message(naive_answer(far_raw, body, name))

    checker, stamper = CookieChecker(far.public, os.urandom), CookieStamper(far.public)
    stamped = stamper.stamp(bytes(116), 0.0)
    ours_whole()
    return {
        "initiation, naive": lambda: naive_initiation(near_raw, far_public, name),
        "initiation, ours": lambda: initiate(near, far.public, suite, TIMESTAMP, fresh()),
        "answer, naive": lambda: naive_answer(far_raw, initiation, name),
        "answer, ours": lambda: receive_initiation(far, initiation, suite).respond(None, fresh()),
        "initiation read and dropped, known peer": lambda: receive_initiation(far, initiation, suite),
        "initiation read and dropped, unknown peer": lambda: receive_initiation(far, unknown, suite),
        "both ends, naive": naive_whole,
        "both ends, ours": ours_whole,
        "mac1 checked": lambda: checker.mac1_is_valid(stamped),
    }


def measure(measured: dict[str, Step]) -> dict[str, tuple[float, float]]:
    """Return the CPU time of this thread per call in microseconds, by name: (fastest round, median round)."""
    rounds: dict[str, list[float]] = {name: [] for name in measured}
    for _ in range(ROUNDS):
        for name, step in measured.items():
            start = time.thread_time()
            for _ in range(CALLS):
                step()
            rounds[name].append((time.thread_time() - start) / CALLS * 1e6)
    return {name: (min(taken), statistics.median(taken)) for name, taken in rounds.items()}


def main() -> None:
    """Measure all suites, print the figures, and write them as JSON with `--json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    arguments = parser.parse_args()
    results = {suite.value: measure(steps(suite)) for suite in Suite}
    print(f"Python {platform.python_version()}, {platform.machine()}, {ROUNDS} rounds of {CALLS}")
    for suite, figures in results.items():
        print(f"\n{suite:44}{'fastest':>9}{'median':>9}  µs")
        for name, (fastest, median) in figures.items():
            print(f"  {name:42}{fastest:9.1f}{median:9.1f}")
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"python": platform.python_version(), "microseconds": results}, indent=1)
        )


if __name__ == "__main__":
    main()
