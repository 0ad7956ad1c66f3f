"""Host network: observe the kernel's state, compare it with the plan, apply the difference, keep it so.

`mesh` decides what the host should look like (`HostState`); this package executes that and decides only the order of
changes. `apply` is the entry for one pass, `reconciler` repeats it for as long as the agent runs, `discovery` reads
what planning needs, `preflight` judges whether a host can run the agent.

Doors: `links` alone imports pyroute2, `netlink` alone packs raw netlink sockets, `nft` alone runs nft(8).
"""
