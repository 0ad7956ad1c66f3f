"""Measures ravenvpn against wireguard-go and against no tunnel at all, in one run on one machine.

    room         two machines joined by a veth pair
    candidates   what is compared: plain veth, wireguard-go, ravenvpn by body and suite
    workloads    what is measured, one small class each
    cpu          who used how much processor time meanwhile
    results      figures of all runs, medians, spread, ratios pair by pair
    bars         what ravenvpn has to reach
    report       table on the terminal, JSON, HTML

Throughput on a shared machine swings with the neighbours' load. So candidates take turns, run by run, and what is
quoted are ratios within one turn and core-seconds per gigabyte.
"""
