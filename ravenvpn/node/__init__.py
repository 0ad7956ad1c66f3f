"""This host's network, as far as it is ours: `observe`, `diff`, `apply`; `keep` keeps it so, `check` judges a host.

It executes what `mesh` decided and decides nothing itself, except the order of changes. `netlink` alone knows
pyroute2, `nft` alone runs nft.
"""
