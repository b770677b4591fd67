"""A server that cannot be reached is given up within seconds."""

import socket

import pytest

from mtsp.files import reachable


def test_a_server_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setattr(reachable, "SECONDS", 0.05)
        assert "timed out" in reachable.why_unreachable(f"http://127.0.0.1:{silent.getsockname()[1]}/w.pth")
    assert reachable.why_unreachable("http://127.0.0.1:9/w.pth")
