"""The command: what it refuses, and how it ends."""

from __future__ import annotations

import os
import signal
import socket

import httpx
import pytest

from minigpt4.common.errors import ConfigError
from minigpt4.serve.__main__ import key_of, main, model_names
from tests.launch import start


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0 lets other machines ask, which needs a key"),
        (["--api-key-env", "NO_SUCH_KEY"], "--api-key-env: NO_SUCH_KEY should hold a key"),
        (["--ckpt", "none.pth"], "none.pth does not exist"),
        (["--ckpt", "a.pth", "./a.pth"], "a.pth is named twice"),
        (["--gpu-id", "99"], "--gpu-id: there is no 'cuda:99' here"),
        (["--port", "99999"], "--port: 99999 cannot be used"),
        (["--options", "serving.rows=0"], "serving.rows: 0 should be at least 1"),
    ],
)
def test_mistakes_end_with_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    port = [] if "--port" in arguments else ["--port", str(free_port())]
    with pytest.raises(SystemExit) as caught:
        main([*arguments, *port])
    assert caught.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error


def test_a_key_is_long_enough_and_fits_a_header(monkeypatch: pytest.MonkeyPatch) -> None:
    assert key_of(None) is None
    monkeypatch.setenv("SERVE_KEY", " long enough\n")
    assert key_of("SERVE_KEY") == "long enough"
    for unfit in ("", "short", "clé assez longue", "two\nlines of text"):
        monkeypatch.setenv("SERVE_KEY", unfit)
        with pytest.raises(ConfigError, match="SERVE_KEY should hold a key of at least 8"):
            key_of("SERVE_KEY")


def test_models_have_the_shortest_names_that_tell_them_apart() -> None:
    assert model_names(["out/run/checkpoint_4.pth"]) == ["checkpoint_4"]
    assert model_names(["a/last.pth", "b/best.pth"]) == ["last", "best"]
    assert model_names(["out/a/last.pth", "out/b/last.pth", "c.pth"]) == [
        "a/last",
        "b/last",
        f"{os.path.basename(os.getcwd())}/c",
    ]


def test_a_signal_ends_it_when_all_is_answered() -> None:
    port = free_port()
    with start("-m", "minigpt4.serve", "--port", str(port)) as server:
        server.read_until(lambda line: f"http://127.0.0.1:{port}/v1" in line and line.startswith("aligned"))
        asked = {"messages": [{"role": "user", "content": "How many objects are there?"}], "stream": True}
        asked |= {"temperature": 2, "max_tokens": 480, "seed": 1}
        address = f"http://127.0.0.1:{port}/v1/chat/completions"
        assert httpx.head(f"http://127.0.0.1:{port}/health").status_code == 200
        foreign = httpx.get(f"http://127.0.0.1:{port}/health", headers={"Host": "evil.example"})
        assert (foreign.status_code, foreign.json()["error"]["code"]) == (403, "unknown_host")
        assert f"http://localhost:{port}/" in foreign.json()["error"]["message"]
        with httpx.stream("POST", address, json=asked, timeout=60) as response:
            lines = response.iter_lines()
            assert response.status_code == 200 and next(lines)
            os.kill(server.pid, signal.SIGTERM)
            assert [line for line in lines if line][-1] == "data: [DONE]"
        status, _ = server.finish()
    assert status == 0


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
