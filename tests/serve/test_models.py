"""Loading the models of a server."""

from __future__ import annotations

import threading

import pytest

pytest.importorskip("fastapi", reason="fastapi is not installed (pip install -e '.[serve]')")

from minigpt4.common.config import load_config
from minigpt4.common.errors import ConfigError
from minigpt4.common.files import asset
from minigpt4.serve.models import in_own_thread, load_models
from tests.drawn import drawn_scenes


def test_checkpoints_share_the_frozen_parts() -> None:
    before = threading.enumerate()
    paths = [asset("tiny/aligned.pth"), asset("tiny/stage1.pth")]
    first, second = load_models(load_config(None).config, paths, None)
    assert threading.enumerate() == before
    assert first.model.llama_model is second.model.llama_model
    image = drawn_scenes()[0].image
    assert first.describe(image) != second.describe(image)


def test_what_is_done_in_a_thread_of_its_own_leaves_none_behind() -> None:
    thread = in_own_thread(threading.current_thread)
    assert thread is not threading.current_thread() and not thread.is_alive()

    def fail() -> None:
        raise ConfigError("no such file")

    with pytest.raises(ConfigError, match="no such file"):
        in_own_thread(fail)
