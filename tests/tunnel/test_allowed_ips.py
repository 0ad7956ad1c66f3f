"""AllowedIPs: the record of routed and accepted prefixes, compared with a slow and obvious one."""

from ipaddress import ip_network

from hypothesis import given
from hypothesis import strategies as st

from ravenvpn.tunnel.allowed_ips import AllowedIPs

NETS = [ip_network(text) for text in ("10.0.0.0/8", "10.1.0.0/16", "fd00::/8", "0.0.0.0/0", "::/0")]
TEN, TEN_ONE, ULA = NETS[:3]


def test_a_prefix_moves_to_its_new_peer():
    book = AllowedIPs()
    book.route(TEN, ("anna",))
    book.route(TEN, ("bert",))
    assert book.prefixes("anna") == []
    assert book.prefixes("bert") == [TEN]
    assert book.routed_to(TEN) == ("bert",)


def test_routing_and_accepting_are_independent():
    book = AllowedIPs()
    book.route(TEN, ("anna",))
    book.accept("bert", (TEN,), ())
    assert book.prefixes("anna") == book.prefixes("bert") == [TEN]
    book.route(TEN, ())
    assert book.prefixes("anna") == []
    assert book.prefixes("bert") == [TEN]
    assert book.accepted_from(TEN) == {"bert"}


def test_a_prefix_can_be_accepted_from_several_peers():
    book = AllowedIPs()
    book.accept("anna", (TEN,), ())
    book.accept("bert", (TEN,), ())
    book.accept("anna", (), (TEN,))
    assert book.accepted_from(TEN) == {"bert"}


def test_removing_a_peer_keeps_the_prefixes_of_others():
    book = AllowedIPs()
    book.route(TEN, ("anna", "bert"))
    book.accept("anna", (TEN, ULA), ())
    book.accept("bert", (ULA,), ())
    book.remove_peer("anna")
    assert book.routed_to(TEN) == ("bert",)
    assert book.accepted_from(ULA) == {"bert"}
    assert book.prefixes("anna") == []


def test_prefixes_are_sorted_with_ipv4_first():
    book = AllowedIPs()
    book.accept("anna", (ULA, TEN_ONE, TEN), ())
    assert book.prefixes("anna") == [TEN, TEN_ONE, ULA]


NAMES = st.sampled_from(["anna", "bert", "carl"])
STEPS = st.one_of(
    st.tuples(st.just("route"), st.sampled_from(NETS), st.lists(NAMES, unique=True)),
    st.tuples(st.just("accept"), st.sampled_from(NETS), NAMES),
    st.tuples(st.just("refuse"), st.sampled_from(NETS), NAMES),
    st.tuples(st.just("forget"), st.just(None), NAMES),
)


@given(st.lists(STEPS, max_size=30))
def test_the_record_agrees_with_two_sets_of_pairs(steps):
    book = AllowedIPs()
    routes: set = set()  # (prefix, name)
    accepts: set = set()
    for what, net, who in steps:
        if what == "route":
            book.route(net, who)
            routes = {pair for pair in routes if pair[0] != net} | {(net, name) for name in who}
        elif what == "accept":
            book.accept(who, (net,), ())
            accepts.add((net, who))
        elif what == "refuse":
            book.accept(who, (), (net,))
            accepts.discard((net, who))
        else:
            book.remove_peer(who)
            routes = {pair for pair in routes if pair[1] != who}
            accepts = {pair for pair in accepts if pair[1] != who}
        for name in ("anna", "bert", "carl"):
            assert set(book.prefixes(name)) == {net for net, other in routes | accepts if other == name}
        for prefix in NETS:
            assert set(book.routed_to(prefix)) == {name for other, name in routes if other == prefix}
            assert book.accepted_from(prefix) == {name for other, name in accepts if other == prefix}
