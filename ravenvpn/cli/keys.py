"""`raven-vpn keygen` and `raven-vpn pubkey`: like `wg genkey` and `wg pubkey`, and with key files of mode 0600."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from ravenvpn.crypto.keys import PrivateKey


@click.command()
@click.argument("file", required=False, type=click.Path(path_type=Path, dir_okay=False))
def keygen(file: Path | None) -> None:
    """Create a private key.

    Without FILE the private key is printed. With FILE it is saved there (mode 0600; an existing key stays as it is)
    and the public key is printed.
    """
    if file is None:
        click.echo(PrivateKey.generate(os.urandom).to_base64())
        return
    from ravenvpn.crypto.keyfile import load_or_create

    click.echo(str(load_or_create(file, os.urandom).public))


@click.command()
@click.argument("file", required=False, type=click.Path(path_type=Path, dir_okay=False))
def pubkey(file: Path | None) -> None:
    """Print the public key of the private key in FILE, or on standard input."""
    if file is None:
        # 4096: a key is 44 characters; a wrong file on standard input is refused without being read as a whole.
        private = PrivateKey.from_base64(sys.stdin.read(4096).strip())
    else:
        from ravenvpn.crypto.keyfile import load

        private = load(file)
    click.echo(str(private.public))
