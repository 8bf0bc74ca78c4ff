"""The server as OpenAI's own client sees it."""

from __future__ import annotations

import base64
import io
import json
import re
import signal
import socket
import threading
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from PIL import Image

from minigpt4.api import LoadedModel
from minigpt4.common.errors import DataError
from minigpt4.processors import image
from minigpt4.serve.app import create_app
from minigpt4.serve.engine import Engine
from minigpt4.serve.images import ImageSource
from minigpt4.serve.server import DrainingServer
from tests.drawn import drawn_scenes
from tests.file_server import serving
from tests.serve.conftest import SETTINGS, Server, Standstill, wait_until

openai = pytest.importorskip("openai", reason="openai is not installed (make install)")
IMAGES = [scene.image for scene in drawn_scenes()]
SAY = {"type": "text", "text": "Describe this image in detail."}


def data_url(image: Image.Image, form: str = "PNG") -> str:
    file = io.BytesIO()
    image.save(file, form, **({"lossless": True} if form == "WEBP" else {}))
    return f"data:image/{form.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def shown(image: Image.Image, form: str = "PNG") -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url(image, form), "detail": "low"}}


def user(*parts: dict[str, Any] | str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": parts[0] if isinstance(parts[0], str) else list(parts)}]


def answered(server: Server) -> Counter[str]:
    """Requests for answers so far, by the status of their answer."""
    text = httpx.get(f"{server.address.removesuffix('/v1')}/metrics").text
    found = re.findall(r'^minigpt4_requests_total\{status="(\d+)"\} (\d+)', text, re.MULTILINE)
    return Counter({status: int(number) for status, number in found})


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Any]:
    with openai.OpenAI(base_url=server.address, api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture
def ask(client: Any) -> Any:
    def create(messages: list[dict[str, Any]], **options: Any) -> Any:
        return client.chat.completions.create(**{"model": "aligned", "messages": messages, "temperature": 0} | options)

    return create


class TestAnswers:
    @pytest.mark.parametrize("form", ["PNG", "WEBP", "BMP"])
    def test_an_image_is_described(self, ask: Any, tiny: LoadedModel, form: str) -> None:
        answer = ask(user(shown(IMAGES[0], form), SAY))
        choice = answer.choices[0]
        assert (choice.message.content, choice.message.role) == (tiny.describe(IMAGES[0]), "assistant")
        assert (choice.finish_reason, answer.model, answer.object) == ("stop", "aligned", "chat.completion")
        prompt = tiny.model.encoder.prompt("<Img><ImageHere></Img> Describe this image in detail.")
        assert answer.usage.prompt_tokens == len(prompt)
        assert answer.usage.total_tokens == len(prompt) + answer.usage.completion_tokens > len(prompt)

    def test_every_checkpoint_is_a_model(self, client: Any, ask: Any, pair: dict[str, LoadedModel]) -> None:
        assert [model.id for model in client.models.list()] == list(pair) == ["aligned", "stage1"]
        assert client.models.retrieve("stage1").id == "stage1"
        expected = {name: model.describe(IMAGES[1]) for name, model in pair.items()}
        told = {name: ask(user(shown(IMAGES[1]), SAY), model=name).choices[0].message.content for name in pair}
        assert told == expected and expected["aligned"] != expected["stage1"]

    def test_the_place_of_an_image_and_its_form_as_a_text(self, ask: Any, tiny: LoadedModel) -> None:
        expected = tiny.describe(IMAGES[2])
        as_text = {"type": "image_url", "image_url": data_url(IMAGES[2])}
        placed = {"type": "text", "text": "<Img><ImageHere></Img> Describe this image in detail."}
        head, _, content = data_url(IMAGES[2]).partition(",")
        in_lines = {"type": "image_url", "image_url": f"{head},\n{content[:76]}\r\n{content[76:]}\n"}
        for parts in ((SAY, shown(IMAGES[2])), (as_text, SAY), (placed, as_text), (as_text,), (in_lines,)):
            assert ask(user(*parts)).choices[0].message.content == expected

    def test_a_conversation_with_several_images_and_a_system_message(self, ask: Any, tiny: LoadedModel) -> None:
        chat = tiny.chat()
        chat.system = "Answer briefly."
        first = chat.ask("What is in this image?", [IMAGES[0], IMAGES[1]])
        second = chat.ask("How many objects are there?", [IMAGES[2]])
        third = chat.ask("Are you sure?")
        asked = [{"role": "system", "content": "Answer briefly."}]
        asked += user(shown(IMAGES[0]), shown(IMAGES[1]), {"type": "text", "text": "What is in this image?"})
        asked += [{"role": "assistant", "content": str(first)}]
        asked += user(shown(IMAGES[2]), {"type": "text", "text": "How many objects are there?"})
        asked += [{"role": "assistant", "content": [{"type": "text", "text": str(second)}]}, *user("Are you sure?")]
        assert ask(asked).choices[0].message.content == third

    def test_no_image_at_all(self, ask: Any, tiny: LoadedModel) -> None:
        expected = tiny.chat().ask("How many objects are there?")
        assert ask(user("How many objects are there?")).choices[0].message.content == expected

    def test_a_stream_is_the_answer_in_pieces(self, ask: Any, tiny: LoadedModel) -> None:
        stream = ask(user(shown(IMAGES[0]), SAY), stream=True, stream_options={"include_usage": True})
        chunks = list(stream)
        assert chunks[0].choices[0].delta.role == "assistant"
        pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
        assert "".join(pieces) == tiny.describe(IMAGES[0]) and len(list(filter(None, pieces))) > 2
        assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-2:] == [None, "stop"]
        assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens > 2
        assert len({chunk.id for chunk in chunks}) == 1

    def test_a_stream_ends_with_done(self, server: Server) -> None:
        body = {"messages": user("How many objects are there?"), "stream": True, "unknown_field": [1]}
        lines = httpx.post(f"{server.address}/chat/completions", json=body).text.split("\n\n")
        assert lines[-2:] == ["data: [DONE]", ""]
        assert "usage" not in lines[0] and json.loads(lines[-3].removeprefix("data: "))["choices"][0]["finish_reason"]

    def test_stop_strings_seeds_and_lengths(self, ask: Any, tiny: LoadedModel) -> None:
        whole = tiny.describe(IMAGES[0])
        asked = user(shown(IMAGES[0]), SAY)
        stopped = ask(asked, stop=["nothing like that", whole[10:14]]).choices[0]
        assert (stopped.message.content, stopped.finish_reason) == (whole[: whole.index(whole[10:14])].strip(), "stop")
        assert ask(asked, stop=whole[10:14], stream=False).choices[0].message.content == stopped.message.content
        for limit in ("max_tokens", "max_completion_tokens"):
            cut = ask(asked, **{limit: 4})
            assert (cut.choices[0].finish_reason, cut.usage.completion_tokens) == ("length", 4)
        assert ask(asked, max_tokens=100_000).choices[0].message.content == whole
        drawn = [ask(asked, temperature=1.8, seed=seed).choices[0].message.content for seed in (1, 2, 3, 1, 2, 3)]
        assert drawn[:3] == drawn[3:] and len(set(drawn)) > 1


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"model": "gpt-4"}, openai.NotFoundError, "there is no model 'gpt-4'; there is aligned, stage1"),
            ({"n": 2}, openai.BadRequestError, "n: Input should be 1"),
            ({"temperature": 9}, openai.BadRequestError, "temperature: Input should be less than or equal to 2"),
            ({"max_tokens": 0}, openai.BadRequestError, "max_tokens: Input should be greater than or equal to 1"),
            ({"stop": [""]}, openai.BadRequestError, "stop"),
            ({"messages": []}, openai.BadRequestError, "messages: List should have at least 1 item"),
            ({"messages": user("  ")}, openai.BadRequestError, "the last message is empty; write a question"),
            ({"messages": user("x" * 70_000)}, openai.BadRequestError, "70,000 characters and 0 images"),
            ({"messages": user("a dog " * 400)}, openai.BadRequestError, "leaves no room for an answer in 512"),
            ({"messages": user("What is <ImageHere>?")}, openai.BadRequestError, "1 image placeholder(s) for 0 image"),
            (
                {"messages": [{"role": "assistant", "content": "Hello."}]},
                openai.BadRequestError,
                "beginning and ending with the user",
            ),
            (
                {"messages": [*user("Hello."), {"role": "system", "content": "Be brief."}]},
                openai.BadRequestError,
                "a system message belongs in front of the others",
            ),
            ({"messages": user(*[shown(IMAGES[0])] * 40)}, openai.BadRequestError, "40 images of 16 tokens each"),
        ],
    )
    def test_what_cannot_be_asked(
        self, ask: Any, options: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error) as caught:
            ask(**{"messages": user("Hello.")} | options)
        assert message in str(caught.value)

    @pytest.mark.parametrize(
        ("url", "message"),
        [
            ("data:image/png;base64,iVBOR$$$", "messages.0.content.0: broken base64"),
            ("data:image/png,abc", "should begin like data:image/png;base64"),
            ("data:image/png;base64," + base64.b64encode(b"hello").decode(), "it is not an image"),
            ("http://127.0.0.1:1/a.png", "this server does not fetch images"),
            ("file:///etc/passwd", "an image should be a data URL"),
        ],
    )
    def test_images_that_cannot_be_used(self, ask: Any, url: str, message: str) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            ask(user({"type": "image_url", "image_url": {"url": url}}))
        assert message in str(caught.value)
        assert caught.value.type == "invalid_request_error"

    def test_images_are_decoded_one_after_the_other(self, ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        done: list[str] = []
        for name in ("decode_pixels", "_resize"):
            own = getattr(image, name)
            monkeypatch.setattr(image, name, lambda *args, own=own, name=name: done.append(name) or own(*args))
        ask(user(*map(shown, IMAGES[:3]), SAY), max_tokens=1)
        assert done == ["decode_pixels", "_resize"] * 3, "decoded, they take the memory of all of them"

    def test_an_image_that_claims_to_be_huge(self, ask: Any) -> None:
        file = io.BytesIO()
        IMAGES[0].save(file, "PNG")
        header = b"IHDR" + (20_000).to_bytes(4, "big") * 2 + file.getvalue()[24:29]
        huge = file.getvalue()[:12] + header + zlib.crc32(header).to_bytes(4, "big") + file.getvalue()[33:]
        url = f"data:image/png;base64,{base64.b64encode(huge).decode()}"
        with pytest.raises(openai.BadRequestError, match=r"messages\.0\.content\.0 cannot be read: .* 100 million"):
            ask(user({"type": "image_url", "image_url": {"url": url}}))

    def test_a_body_that_is_too_large(self, server: Server) -> None:
        address = f"{server.address}/chat/completions"
        large = int(SETTINGS.max_request_mb * 1e6) + 1

        def chunks() -> Iterator[bytes]:
            for _ in range(8):  # no header says how much there is
                yield b" " * (large // 4)

        for content in (b" " * large, chunks()):
            response = httpx.post(address, content=content)
            error = response.json()["error"]
            assert (response.status_code, error["code"]) == (413, "request_too_large")
            assert "more than 1 MB (serving.max_request_mb)" in error["message"]

    def test_what_is_no_request(self, server: Server) -> None:
        address = f"{server.address}/chat/completions"
        for content in (b"", b"{", b"[1]", b'{"messages": "\xff"}', b'{"messages": [{"role": "user"}], "top_p": NaN}'):
            response = httpx.post(address, content=content)
            assert response.status_code == 400 and response.json()["error"]["message"], content
        assert httpx.get(address).json()["error"]["message"].startswith("Method Not Allowed; ")
        for part, place in (
            ({"type": "text", "text": 5}, "messages.0.content.0.text"),
            ({"type": "image_url", "image_url": {}}, "messages.0.content.0.image_url.url"),
            ({"type": "image_url"}, "messages.0.content.0.image_url"),
            ({"type": "audio"}, "messages.0.content.0"),
        ):
            response = httpx.post(address, json={"messages": user(part)})
            assert response.json()["error"]["param"] == place
        response = httpx.post(address, json={"messages": user("") * 20_000})
        assert "at most 10000 items" in response.json()["error"]["message"]
        assert httpx.get(f"{server.address}/nothing").status_code == 404
        assert httpx.get(f"{server.address}/models/none").json()["error"]["code"] == "model_not_found"

    def test_too_many_requests(self, ask: Any, standstill: Standstill) -> None:
        told: list[str] = []
        refused: list[Any] = []

        def client() -> None:
            try:
                told.append(ask(user("How many?"), max_tokens=2).choices[0].finish_reason)
            except openai.RateLimitError as error:
                refused.append(error)

        threads = [threading.Thread(target=client, daemon=True) for _ in range(SETTINGS.waiting + 5)]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(refused) > 0)
        standstill.release()
        for thread in threads:
            thread.join(30)
        assert len(told) + len(refused) == len(threads) and len(told) >= SETTINGS.waiting
        assert "serving.waiting" in str(refused[0]) and refused[0].code == "queue_full"
        assert int(refused[0].response.headers["retry-after"]) >= 1

    def test_a_wrong_key(self, engine: Engine, pair: dict[str, LoadedModel]) -> None:
        guarded = Server(engine, pair, key="a key of this test")
        try:
            right = openai.OpenAI(base_url=guarded.address, api_key="a key of this test", max_retries=0)
            assert right.chat.completions.create(model="aligned", messages=user("How many?"), max_tokens=1).choices
            for key in ("", "wrong", "a key of this tesT"):
                wrong = openai.OpenAI(base_url=guarded.address, api_key=key or "x", max_retries=0)
                with pytest.raises(openai.AuthenticationError, match="a key is missing or wrong"):
                    wrong.chat.completions.create(model="aligned", messages=user(shown(IMAGES[0])))
                with pytest.raises(openai.AuthenticationError):
                    wrong.models.list()
            root = guarded.address.removesuffix("/v1")
            assert httpx.get(f"{root}/metrics").status_code == 401
            assert httpx.get(f"{root}/health").status_code == 200
        finally:
            guarded.end()


class TestLeaving:
    @pytest.mark.parametrize("stream", [True, False])
    def test_a_client_that_leaves_ends_its_work(
        self, server: Server, engine: Engine, standstill: Standstill, stream: bool
    ) -> None:
        before = engine.answer_tokens
        host, port = server.address.split("/")[2].split(":")
        asked = {"messages": user("How many objects are there?"), "temperature": 1.5, "max_tokens": 480, "seed": 3}
        body = json.dumps({**asked, "stream": stream}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(head.encode() + body)
            wait_until(lambda: server.gate.inside == 1)
        wait_until(lambda: server.gate.inside == 0)
        standstill.release()
        wait_until(lambda: engine.running == 0 and engine.waiting == 0)
        assert engine.answer_tokens - before <= 2

    def test_a_client_that_leaves_while_it_sends_is_no_error(self, server: Server) -> None:
        host, port = server.address.split("/")[2].split(":")
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"
        before = answered(server)
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(head + b'{"messages"')
            wait_until(lambda: server.gate.inside == 1)
        wait_until(lambda: server.gate.inside == 0)
        assert answered(server) - before == Counter({"499": 1})

    def test_a_connection_without_a_request_is_closed(
        self, engine: Engine, pair: dict[str, LoadedModel], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("minigpt4.serve.server.HEADER_SECONDS", 0.2)
        impatient = Server(engine, pair)
        host, port = impatient.address.split("/")[2].split(":")
        asked = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
        try:
            for sent in (b"", b"GET /hea", asked, asked + b"GET"):
                with socket.create_connection((host, int(port)), timeout=20) as connection:
                    connection.sendall(sent)
                    answer = b"".join(iter(lambda: connection.recv(1000), b""))  # until it is closed
                assert (b"200 OK" in answer) == (asked in sent)
        finally:
            impatient.end()

    def test_a_client_that_has_read_enough(self, server: Server, engine: Engine, ask: Any) -> None:
        before = engine.answer_tokens
        stream = ask(user("Describe it."), stream=True, temperature=2, top_p=1, max_tokens=480, seed=5)
        for chunk in stream:
            if chunk.choices[0].delta.content:
                break
        stream.close()
        wait_until(lambda: server.gate.inside == 0 and engine.running == 0)
        assert engine.answer_tokens - before < 480


class TestRemoteImages:
    def test_images_are_fetched_from_hosts_that_are_named(
        self, engine: Engine, pair: dict[str, LoadedModel], tmp_path: Any
    ) -> None:
        IMAGES[0].save(tmp_path / "a.png")
        (tmp_path / "large.png").write_bytes(bytes(1_000_001))
        limit = int(SETTINGS.max_request_mb * 1e6)
        with serving(tmp_path) as files:
            for remote, address, expected in (
                (["127.0.0.1"], files.url, None),
                ([], files.url, "127.0.0.1 is not a public address"),
                (["images.example.org"], files.url, "does not fetch images from 127.0.0.1"),
            ):
                guarded = Server(engine, pair, images=ImageSource(remote, limit))
                client = openai.OpenAI(base_url=guarded.address, api_key="none", max_retries=0)

                def tell(name: str, client: Any = client, address: str = address) -> str:
                    part = {"type": "image_url", "image_url": {"url": f"{address}/{name}"}}
                    answer = client.chat.completions.create(model="aligned", messages=user(part, SAY), temperature=0)
                    return str(answer.choices[0].message.content)

                try:
                    if expected is None:
                        assert tell("a.png") == pair["aligned"].describe(IMAGES[0])
                        with pytest.raises(openai.BadRequestError, match="404"):
                            tell("none.png")
                        with pytest.raises(openai.APIStatusError, match="the image has more than 1 MB") as caught:
                            tell("large.png")
                        assert caught.value.status_code == 413
                    else:
                        with pytest.raises(openai.BadRequestError, match=expected):
                            tell("a.png")
                finally:
                    guarded.end()


class TestOperation:
    def test_metrics_tell_what_was_done(self, server: Server, ask: Any, engine: Engine) -> None:
        ask(user("How many objects are there?"))
        text = httpx.get(f"{server.address.removesuffix('/v1')}/metrics").text
        values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        assert float(values["minigpt4_answer_tokens_total"]) == engine.answer_tokens > 0
        assert float(values['minigpt4_requests_total{status="200"}']) >= 1
        assert float(values["minigpt4_rows"]) == 4 and float(values["minigpt4_running"]) == 0
        assert float(values["minigpt4_answer_seconds_count"]) >= 1

    def test_an_error_of_our_own_is_said_in_the_format(
        self, ask: Any, monkeypatch: pytest.MonkeyPatch, server: Server
    ) -> None:
        def fails(*_: Any) -> None:
            raise RuntimeError("no memory left")

        monkeypatch.setattr("minigpt4.serve.lane.Lane.step", fails)
        with pytest.raises(openai.InternalServerError, match="an error of the server"):
            ask(user("How many objects are there?"))
        with pytest.raises(openai.APIError, match="an error of the server"):
            list(ask(user("How many objects are there?"), stream=True))
        monkeypatch.setattr("minigpt4.serve.lane.Lane.join", lambda *_: (_ for _ in ()).throw(DataError("bad")))
        with pytest.raises(openai.BadRequestError, match="bad"):
            ask(user("How many objects are there?"))

    def test_a_second_signal_ends_it_at_once(
        self, engine: Engine, pair: dict[str, LoadedModel], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("minigpt4.serve.server.LAST_SECONDS", 0.1)
        gate = create_app(engine, pair, SETTINGS)
        connections: list[socket.socket] = []

        def interrupt() -> None:
            address = ending.servers[0].sockets[0].getsockname()
            connections.append(socket.create_connection(address))
            connections[0].sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
            wait_until(lambda: gate.inside == 1)
            signal.raise_signal(signal.SIGINT)
            wait_until(lambda: gate.closed)
            signal.raise_signal(signal.SIGINT)

        interrupting = threading.Thread(target=interrupt)
        ending = DrainingServer(gate, gate, engine, 100, ("127.0.0.1", 0), interrupting.start)
        ending.run()
        interrupting.join()
        connections[0].close()
        assert gate.closed and engine.alive

    def test_what_was_begun_is_finished_when_the_server_ends(
        self, engine: Engine, pair: dict[str, LoadedModel], standstill: Standstill
    ) -> None:
        ending = Server(engine, pair)
        root = ending.address.removesuffix("/v1")
        client = openai.OpenAI(base_url=ending.address, api_key="none", max_retries=0)
        told: list[str] = []

        def ask() -> None:
            answer = client.chat.completions.create(
                model="aligned", messages=user(shown(IMAGES[0]), SAY), temperature=0
            )
            told.append(answer.choices[0].message.content)

        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        wait_until(lambda: ending.gate.inside == 1)
        stopping = threading.Thread(target=ending.end, daemon=True)
        stopping.start()
        wait_until(lambda: ending.gate.closed)
        with pytest.raises(openai.InternalServerError, match="the server is ending") as caught:
            client.chat.completions.create(model="aligned", messages=user("How many?"))
        assert caught.value.status_code == 503 and httpx.get(f"{root}/health").status_code == 503
        assert ending.thread.is_alive()
        standstill.release()
        for thread in (asking, stopping):
            thread.join(30)
        assert told == [pair["aligned"].describe(IMAGES[0])]
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{root}/health")
