"""The test vectors as values. `vectors/README.md` names their sources."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any, NamedTuple

from ravenvpn.crypto.aead import Suite
from ravenvpn.crypto.keys import PresharedKey, PrivateKey, PublicKey

DIRECTORY = Path(__file__).parent / "vectors"
DOCUMENT: dict[str, Any] = json.loads((DIRECTORY / "exchange.json").read_text())


class Exchange(NamedTuple):
    """One exchange. `private` returns a new key object on each call, since a handshake wipes its ephemeral key."""

    facts: dict[str, Any]

    @property
    def suite(self) -> Suite:
        return Suite(self.facts["suite"])

    @property
    def psk(self) -> PresharedKey | None:
        return PresharedKey.from_hex(self.facts["psk"]) if self.facts["psk"] else None

    def private(self, name: str) -> PrivateKey:
        return PrivateKey.from_hex(self.facts[name])

    def public(self, name: str) -> PublicKey:
        return PublicKey.from_hex(self.facts[name])

    def raw(self, name: str) -> bytes:
        return bytes.fromhex(self.facts[name])

    @property
    def initiation_body(self) -> bytes:
        return self.raw("initiation")[8:116]

    @property
    def response_body(self) -> bytes:
        return self.raw("response")[12:60]

    def __str__(self) -> str:
        return f"{self.facts['suite']}-{'psk' if self.facts['psk'] else 'no-psk'}"


EXCHANGES = [Exchange(facts) for facts in DOCUMENT["exchanges"]]


def wycheproof(name: str) -> list[dict[str, Any]]:
    tests: list[dict[str, Any]] = json.loads(
        gzip.decompress((DIRECTORY / "wycheproof" / f"{name}.json.gz").read_bytes())
    )
    return tests
