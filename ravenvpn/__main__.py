"""`python -m ravenvpn` is `raven-vpn`."""

from ravenvpn.cli import main

main()
