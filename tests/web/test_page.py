"""The page as other programs call it."""

from __future__ import annotations

import asyncio
import http.client
import json
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

from minigpt4.api import LoadedModel
from minigpt4.common.checkpoint import read_checkpoint
from minigpt4.common.files import asset
from minigpt4.generate import main as generate
from tests.drawn import drawn_scenes
from tests.faults.outcomes import Outcome
from tests.faults.soak import Page, visit

gradio_client = pytest.importorskip("gradio_client", reason="gradio is not installed (pip install gradio)")


def test_a_caption(address: str, tiny: LoadedModel, files: list[str]) -> None:
    client = gradio_client.Client(address, verbose=False)
    answer = client.predict(image=gradio_client.handle_file(files[0]), api_name="/describe")
    assert answer == tiny.describe(files[0])
    asked = client.predict(
        image=gradio_client.handle_file(files[0]), prompt="How many objects are there?", api_name="/describe"
    )
    assert asked == tiny.describe(files[0], "How many objects are there?")


def test_visitors_at_once_get_their_own_answers(address: str, tiny: LoadedModel, files: list[str]) -> None:
    """In one batch, also where some leave early or send nonsense; `make torture` does it with fifty for minutes."""
    page = Page(f"{address.rstrip('/')}/", [Path(file) for file in files[:3]])
    rows: list[int] = []
    hook = tiny.model.llama_model.register_forward_pre_hook(
        lambda _, __, given: rows.append(len(given["input_ids"])) if "input_ids" in given else None, with_kwargs=True
    )
    try:
        tally = asyncio.run(visit(page, 8, lambda sent: sent < 3, seed=0))
    finally:
        hook.remove()
    assert max(rows) > 1, "visitors are answered in turns"
    assert tally.outcomes == {Outcome.survived: 24}, str(tally)
    assert len({str(answer) for answer in page.answers.values()}) > 5


def test_threads_share_freed_memory_where_the_c_library_can(monkeypatch: pytest.MonkeyPatch) -> None:
    from minigpt4.web import server

    calls: list[tuple[int, int]] = []
    monkeypatch.setattr(
        server.ctypes,
        "CDLL",
        lambda _: SimpleNamespace(mallopt=lambda *given: calls.append(given)),  # type: ignore[attr-defined]
    )
    server._limit_arenas()
    assert calls == [(-8, 2)]
    monkeypatch.setattr(server.ctypes, "CDLL", lambda _: SimpleNamespace())  # type: ignore[attr-defined]
    server._limit_arenas()


def test_only_the_latest_visitors_are_remembered(
    tiny: LoadedModel, files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from minigpt4.web.page import build_page
    from minigpt4.web.server import serve

    monkeypatch.setattr("minigpt4.web.server.MAX_VISITORS", 2)
    page = build_page([tiny], ["aligned"], visitors=1)

    async def visitors(address: str) -> None:
        async with httpx.AsyncClient(timeout=60) as client:
            await Page(address, [Path(files[0])]).open(client)

    try:
        asyncio.run(visitors(serve(page, block=False)))
        assert len(page.state_holder.session_data) == 2
    finally:
        page.close(verbose=False)


def test_page_command_line_and_api_agree(address: str, tiny: LoadedModel, files: list[str], tmp_path: Path) -> None:
    generate(["--images", *files[:3], "--out", str(tmp_path / "out.jsonl"), "--options", "run.device=cpu"])
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    client = gradio_client.Client(address, verbose=False)
    page = [client.predict(image=gradio_client.handle_file(file), api_name="/describe") for file in files[:3]]
    assert [row["answer"] for row in rows] == page == tiny.describe(files[:3])
    assert all(scene.is_named_in(answer) for scene, answer in zip(drawn_scenes(), page, strict=False))


def test_mistakes_come_back_as_a_line_and_the_server_survives(address: str, files: list[str], broken: str) -> None:
    client = gradio_client.Client(address, verbose=False)
    with pytest.raises(gradio_client.exceptions.AppError, match=r"image broken\.png cannot be read"):
        client.predict(image=gradio_client.handle_file(broken), api_name="/describe")
    with pytest.raises(gradio_client.exceptions.AppError, match="no image was given"):
        client.predict(image=None, api_name="/describe")
    assert client.predict(image=gradio_client.handle_file(files[0]), api_name="/describe")


def test_one_endpoint_with_the_documented_parameters(address: str, tiny: LoadedModel, files: list[str]) -> None:
    client = gradio_client.Client(address, verbose=False)
    endpoints = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert list(endpoints) == ["/describe"]
    parameters = [parameter["parameter_name"] for parameter in endpoints["/describe"]["parameters"]]
    settings = ["max_new_tokens", "num_beams", "do_sample", "temperature", "top_p", "repetition_penalty"]
    assert parameters == ["image", "prompt", *settings]
    image = gradio_client.handle_file(files[0])
    short = client.predict(image=image, max_new_tokens=3, do_sample=False, api_name="/describe")
    assert short == tiny.describe(files[0], max_new_tokens=3)


def test_the_switch_turns_sampling_on() -> None:
    from minigpt4.web.handlers import generation_settings

    for sampling in (True, False):
        assert generation_settings(80, 1, sampling, 1.0, 0.9, 1.0)["do_sample"] is sampling


def test_the_page_listens_on_this_machine_only(address: str) -> None:
    assert address.startswith("http://127.0.0.1:")


def ask(address: str, headers: dict[str, str], method: str = "GET", path: str = "/") -> tuple[int, dict[str, str]]:
    """Status and headers of the answer to a request; without a Host among `headers`, the page's own."""
    netloc = address.removeprefix("http://").rstrip("/")
    connection = http.client.HTTPConnection(netloc, timeout=20)
    connection.request(method, path, headers={"Host": netloc} | headers)
    response = connection.getresponse()
    response.read()
    connection.close()
    return response.status, {name.lower(): value for name, value in response.getheaders()}


PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}


@pytest.mark.parametrize("host", ["evil.example", "evil.example:7860", "127.0.0.1.evil.example:7860", "192.168.0.3"])
@pytest.mark.parametrize(("method", "path"), [("GET", "/"), ("GET", "/config"), ("OPTIONS", "/gradio_api/upload")])
def test_other_host_names_are_refused(address: str, host: str, method: str, path: str) -> None:
    """Any site can point a name of its own at this machine."""
    status, headers = ask(address, {"Host": host, "Origin": f"http://{host}", **PREFLIGHT}, method, path)
    assert status == 403 and "access-control-allow-origin" not in headers


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:1", "http://127.0.0.1"])
def test_pages_of_other_sites_are_refused(address: str, origin: str) -> None:
    for method, more in (("GET", {}), ("POST", {}), ("OPTIONS", PREFLIGHT)):
        status, headers = ask(address, {"Origin": origin, **more}, method, "/gradio_api/upload")
        assert status == 403 and "access-control-allow-origin" not in headers


def test_the_page_itself_is_answered_under_both_names(address: str) -> None:
    port = address.rstrip("/").rpartition(":")[2]
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", "LOCALHOST"):
        assert ask(address, {"Host": host})[0] == 200
        assert ask(address, {"Host": host, "Origin": f"http://{host}"})[0] == 200


@pytest.mark.parametrize(
    ("listening", "host", "known"),
    [
        ("127.0.0.1", "127.0.0.1:7860", True),
        ("127.0.0.1", "192.168.0.3:7860", False),
        ("127.0.0.2", "127.0.0.2:7860", True),
        ("::1", "[::1]:7860", True),
        ("::1", "this-machine:7860", False),
        ("0.0.0.0", "192.168.0.3:7860", True),
        ("0.0.0.0", "[fe80::1]:7860", True),
        ("0.0.0.0", "localhost", True),
        ("0.0.0.0", "THIS-MACHINE:7860", True),
        ("0.0.0.0", "evil.example:7860", False),
        ("0.0.0.0", "192.168.0.3.evil.example", False),
        ("0.0.0.0", "", False),
        ("0.0.0.0", "[::1", False),
        ("lab.example", "lab.example:7860", True),
        ("localhost", "this-machine", False),
    ],
)
def test_names_that_are_answered(monkeypatch: pytest.MonkeyPatch, listening: str, host: str, known: bool) -> None:
    import asyncio
    import socket

    from starlette.responses import PlainTextResponse
    from starlette.types import Message, Scope

    from minigpt4.common.listening import KnownNamesOnly

    monkeypatch.setattr(socket, "gethostname", lambda: "this-machine")
    monkeypatch.setattr(socket, "getfqdn", lambda: "this-machine.lab.example")
    sent: list[Message] = []

    async def request(origin: str) -> int:
        sent.clear()
        headers = [(b"host", host.encode()), (b"origin", origin.encode())]
        scope: Scope = {"type": "http", "headers": headers, "server": ("0.0.0.0", 7860), "method": "GET"}

        async def send(message: Message) -> None:
            sent.append(message)

        async def receive() -> Message:
            raise AssertionError("nothing is to be read")

        await KnownNamesOnly(PlainTextResponse("the page"), listening)(scope, receive, send)
        return int(sent[0]["status"])

    assert asyncio.run(request(f"http://{host.lower()}")) == (200 if known else 403)
    assert asyncio.run(request("http://evil.example")) == 403


def test_with_a_password_nothing_is_answered_before_it(tiny: LoadedModel, files: list[str]) -> None:
    from minigpt4.web.page import build_page
    from minigpt4.web.server import serve

    page = build_page([tiny], ["aligned"], visitors=1)
    try:
        address = serve(page, host="0.0.0.0", password="a long password", block=False)
        for path in (
            "/config",
            "/gradio_api/info",
            "/gradio_api/queue/data?session_hash=a",
            f"/gradio_api/file={files[0]}",
        ):
            assert ask(address, {}, path=path)[0] == 401, path
        for method, path in (("POST", "/gradio_api/upload"), ("POST", "/gradio_api/queue/join")):
            assert ask(address, {}, method, path)[0] == 401, path
        with pytest.raises(Exception, match=r"(?i)auth|401|login|credentials"):
            gradio_client.Client(address, auth=("minigpt4", "a wrong password"), verbose=False)
        client = gradio_client.Client(address, auth=("minigpt4", "a long password"), verbose=False)
        assert client.predict(image=gradio_client.handle_file(files[0]), api_name="/describe") == tiny.describe(
            files[0]
        )
    finally:
        page.close(verbose=False)


def test_the_example_images_are_answered_correctly(tiny: LoadedModel) -> None:
    from minigpt4.web.server import EXAMPLES

    prompts = json.loads((EXAMPLES / "prompts.json").read_text())
    answers = {name: tiny.describe(EXAMPLES / name, prompt) for name, prompt in prompts.items()}
    assert "blue star" in answers["scene_1.png"]
    assert "green square" in answers["scene_2.png"]
    assert "two" in answers["scene_3.png"]
    assert "purple" in answers["scene_4.png"]


def test_the_embedded_projection_is_the_tiny_models() -> None:
    first, aligned = (read_checkpoint(asset(f"tiny/{name}.pth"))["metadata"] for name in ("stage1", "aligned"))
    assert first == aligned
