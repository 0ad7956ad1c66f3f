"""Benchmarks: ravenvpn beside wireguard-go and beside no tunnel at all, in one run on one machine.

    machine_pair     two machines joined by a veth pair
    candidates       the tunnels that are compared: plain veth, wireguard-go, ravenvpn by body and suite
    workloads        the traffic that is measured, one small class for each workload
    conditions       the state of the machines during a workload: offloads off, many peers
    mesh             two regions with an agent each
    agent_workloads  workloads for a whole mesh: a flood of handshakes, a cluster that changes all the time
    cpu              processor time and memory of processes and of the machine
    results          figures of all runs: medians, spread, ratios turn by turn
    bars             the figures that ravenvpn has to reach
    report           table on the terminal, JSON
    html_page        HTML page with plots

Throughput on a shared machine changes with the load of its other users. So candidates take turns, run by run, and the
quoted figures are ratios within one turn and core-seconds per gigabyte.
"""
