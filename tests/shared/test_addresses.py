"""Addresses as people write them: what each form is taken for, and what is none of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.shared.addresses import parse_connect, parse_listen, parse_node, parse_store


def test_the_address_of_a_store_is_split() -> None:
    assert parse_store("http://10.0.0.9:2379") == ("http", "10.0.0.9", 2379)
    assert parse_store("https://[::1]:2379/") == ("https", "::1", 2379)


@pytest.mark.parametrize("text", ["", "10.0.0.9:2379", "ftp://a:1", "http://a", "http://a:0"])
def test_what_is_no_address_of_a_store_is_told_with_the_right_form(text: str) -> None:
    with pytest.raises(ValueError, match="http://HOST:PORT or https://HOST:PORT"):
        parse_store(text)


def test_a_node_is_its_id_and_where_it_listens() -> None:
    assert parse_node("2@10.0.0.2:7800") == (2, "10.0.0.2", 7800)
    assert parse_node("65535@[::1]:1") == (65_535, "::1", 1)


@pytest.mark.parametrize("text", ["", "a:1", "@a:1", "0@a:1", "65536@a:1", "+1@a:1", "٣@a:1"])
def test_what_has_no_id_is_no_node(text: str) -> None:
    with pytest.raises(ValueError, match="ID@HOST:PORT with an id from 1 to 65535"):
        parse_node(text)


def test_a_node_that_others_call_has_a_port() -> None:
    with pytest.raises(ValueError, match="a port from 1 to 65535"):
        parse_node("1@a:0")


def test_nobody_is_called_at_port_0() -> None:
    assert parse_connect("[::1]:1") == ("::1", 1)
    with pytest.raises(ValueError, match="a port from 1 to 65535"):
        parse_connect("127.0.0.1:0")


@given(st.text(max_size=40))
def test_whatever_is_written_is_an_address_or_a_value_error(text: str) -> None:
    try:
        host, port = parse_listen(text)
    except ValueError:
        return
    assert host
    assert 0 <= port <= 65_535
    shown = f"[{host}]" if ":" in host else host
    assert parse_listen(f"{shown}:{port}") == (host, port)
