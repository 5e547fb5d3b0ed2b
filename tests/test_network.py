"""The guard that keeps every test off the network does so, and lets this machine's own addresses through."""

import socket
import urllib.request

import pytest


def test_other_machines_cannot_be_reached(no_network):
    with pytest.raises(OSError, match="may not reach"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    with pytest.raises(OSError, match="may not reach"):
        urllib.request.urlopen("http://example.org", timeout=1)
    assert len(no_network) == 2
    no_network.clear()


def test_this_machine_can(no_network):
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        server.accept()[0].sendall(b"hello")
        assert client.recv(5) == b"hello"
