"""The page's command."""

from __future__ import annotations

import builtins
import socket
from typing import Any

import pytest

import demo


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ckpt", "a.pth", "b.pth", "c.pth"], "--ckpt: 3 checkpoints; give one, or two"),
        (["--ckpt", "none.pth"], "none.pth does not exist"),
        (["--gpu-id", "99"], "error: --gpu-id: there is no 'cuda:99' here (GPUs: "),
        (["--cfg-path", "none.yaml"], "none.yaml does not exist"),
        (["--port", "0"], "--port: 0 is no port; leave it out"),
        (["--port", "99999"], "--port: 99999 cannot be used; choose another"),
    ],
)
def test_mistakes_end_with_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        demo.main(arguments)
    assert caught.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error


def test_a_port_that_is_taken_is_found_before_anything_is_loaded(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minigpt4.serve.models.load_models", lambda *_: pytest.fail("the model was loaded"))
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(SystemExit) as caught:
            demo.main(["--port", str(port)])
    assert caught.value.code == 2
    assert f"error: --port: {port} cannot be used" in capsys.readouterr().err


def test_without_gradio_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = builtins.__import__

    def absent(name: str, *rest: Any) -> Any:
        if name.startswith("minigpt4.web"):
            raise ModuleNotFoundError("No module named 'gradio'", name="gradio")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(SystemExit):
        demo.main([])
    *_, last = capsys.readouterr().err.splitlines()
    assert last == "error: the package gradio is missing; run: pip install -c constraints.txt -e '.[demo]'"


@pytest.mark.parametrize(
    ("arguments", "password", "message"),
    [
        (["--host", "0.0.0.0"], None, "--host 0.0.0.0 lets other machines open the page, which needs a password"),
        (["--share"], None, "--share lets other machines open the page, which needs a password"),
        (["--share"], "short", "MINIGPT4_PASSWORD has 5 characters, should have at least 8"),
        (["--host", "no.such.host.invalid"], "long enough", "no.such.host.invalid is no address of this machine"),
        (["--host", "192.0.2.1"], "long enough", "--host: 192.0.2.1 is no address of this machine"),
    ],
)
def test_other_machines_need_a_password_and_an_address(
    arguments: list[str],
    password: str | None,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("MINIGPT4_PASSWORD", raising=False)
    if password:
        monkeypatch.setenv("MINIGPT4_PASSWORD", password)
    monkeypatch.setattr("minigpt4.serve.models.load_models", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises(SystemExit):
        demo.main(arguments)
    assert message in capsys.readouterr().err
