"""A hub on loopback, and somebody who uses it."""

import pytest
from hub_server import HubServer
from hub_users import User
from huggingface_hub import close_session


@pytest.fixture
def hub():
    server = HubServer()
    yield server
    server.stop()


@pytest.fixture
def user(tmp_path, hub, monkeypatch):
    yield User(tmp_path, hub.endpoint, monkeypatch)
    close_session()
