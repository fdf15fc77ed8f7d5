"""Datagrams find their connection by connection ID and by stateless reset token."""

from __future__ import annotations

from typing import Any

import pytest

from phoenix_trio.quic.route import NO_SINK, Route
from phoenix_trio.quic.routing_table import RETIRED_ID_SECONDS, RoutingTable

TOKEN = b"0123456789abcdef"


@pytest.fixture
def route() -> Route:
    return make_route()


def make_route() -> Route:
    engine: Any = None
    return Route(engine, NO_SINK)


def is_empty(table: RoutingTable) -> bool:
    return not (table.routes or table.by_connection_id or table.by_reset_key)


def test_every_connection_id_leads_to_its_connection(route: Route) -> None:
    table = RoutingTable()
    table.add(route, [b"first", b"second"])
    table.add_connection_id(route, b"third")
    assert set(table.by_connection_id) == {b"first", b"second", b"third"}
    assert list(table.routes) == [route]
    table.remove(route)
    assert is_empty(table)
    assert not route.connection_ids


def test_a_retired_connection_id_is_recognised_for_a_while(route: Route) -> None:
    table = RoutingTable()
    table.add(route, [b"first", b"second"])
    table.retire(route, b"first", 10.0)
    table.retire(route, b"second", 11.0)
    table.remove_retired(10.0 + RETIRED_ID_SECONDS - 0.01)
    assert table.by_connection_id.get(b"first") is route
    table.remove_retired(10.0 + RETIRED_ID_SECONDS)
    assert b"first" not in table.by_connection_id
    assert route.connection_ids == {b"second"}
    assert table.retired[0][0] == 11.0 + RETIRED_ID_SECONDS


def test_a_retired_connection_id_that_leads_elsewhere_by_now_stays(route: Route) -> None:
    table, other = RoutingTable(), make_route()
    table.add(route, [b"same"])
    table.retire(route, b"same", 0.0)
    table.remove(route)
    table.add(other, [b"same"])
    table.remove_retired(100.0)
    assert table.by_connection_id.get(b"same") is other


def test_removing_a_connection_leaves_what_leads_elsewhere_by_now(route: Route) -> None:
    table, other = RoutingTable(), make_route()
    table.add(route, [b"same"])
    table.set_reset_tokens(route, [TOKEN])
    table.add(other, [b"same"])
    table.set_reset_tokens(other, [TOKEN])
    table.remove(route)
    assert table.by_connection_id.get(b"same") is other
    assert table.find_reset(b"x" * 20 + TOKEN) is other
    table.remove(other)
    assert is_empty(table)


def test_a_stateless_reset_is_found_by_its_last_sixteen_bytes(route: Route) -> None:
    table = RoutingTable()
    table.add(route, [])
    table.set_reset_tokens(route, [TOKEN])
    assert table.find_reset(b"\x40" + TOKEN) is route
    assert table.find_reset(TOKEN) is None, "there is no room for a header"
    assert table.find_reset(b"\x40" + TOKEN + b"x") is None
    assert table.find_reset(b"") is None
    assert TOKEN not in table.by_reset_key


def test_new_reset_tokens_take_the_place_of_old_ones(route: Route) -> None:
    table, other_token = RoutingTable(), TOKEN[::-1]
    table.add(route, [])
    table.set_reset_tokens(route, [TOKEN])
    table.set_reset_tokens(route, [other_token])
    assert table.find_reset(b"\x40" + TOKEN) is None
    assert table.find_reset(b"\x40" + other_token) is route
    table.set_reset_tokens(route, [])
    assert not table.by_reset_key
