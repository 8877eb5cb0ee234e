import os
import socket

import pytest


@pytest.mark.parametrize("method", ["connect", "connect_ex"])
def test_a_connection_that_leaves_the_machine_is_refused_with_its_address(method: str):
    with socket.socket() as client, pytest.raises(AssertionError, match=r"192\.0\.2\.1:443.*offline"):
        getattr(client, method)(("192.0.2.1", 443))


def test_a_loopback_connection_works():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname(), timeout=10) as client:
        assert client.getpeername() == server.getsockname()


def test_model_libraries_are_told_to_stay_offline():
    assert (os.environ["HF_HUB_OFFLINE"], os.environ["TRANSFORMERS_OFFLINE"]) == ("1", "1")
