"""Models and projections from files, and number formats."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from minigpt4.common.checkpoint import write_checkpoint
from minigpt4.common.errors import CheckpointError, ConfigError, MiniGPT4Error
from minigpt4.common.schema import LowResource, ModelConfig, Precision
from minigpt4.datasets.feature_cache import cache_identity
from minigpt4.models import loading
from minigpt4.models.loading import (
    build_model,
    choose_precision,
    free_memory,
    load_projection,
    weight_bytes,
    with_projection,
)
from minigpt4.processors.image import CLIP
from tests.models.parity import CPU, Case, build_with, model_config


def projection(case: Case) -> dict[str, Tensor]:
    return {name: tensor + 1 for name, tensor in case.model.trainable_state().items()}


@pytest.fixture
def fresh(parity_a: Case) -> Any:
    return build_with(parity_a, ckpt=None)


@pytest.mark.parametrize("prefix", ["", "module.", "module.module."])
def test_published_and_wrapped_names(parity_a: Case, fresh: Any, tmp_path: Path, prefix: str) -> None:
    state = {prefix + name: tensor for name, tensor in projection(parity_a).items()}
    write_checkpoint(tmp_path / "ckpt.pth", {"model": state})
    load_projection(fresh, tmp_path / "ckpt.pth")
    assert torch.equal(fresh.llama_proj.weight, projection(parity_a)["llama_proj.weight"])


def test_safetensors_projection(parity_a: Case, fresh: Any, tmp_path: Path) -> None:
    save_file(projection(parity_a), tmp_path / "ckpt.safetensors")
    load_projection(fresh, tmp_path / "ckpt.safetensors")
    assert torch.equal(fresh.llama_proj.bias, projection(parity_a)["llama_proj.bias"])


def test_fresh_projection_without_checkpoint(parity_a: Case, fresh: Any) -> None:
    assert not torch.equal(fresh.llama_proj.weight, parity_a.model.llama_proj.weight)
    assert torch.equal(fresh.bridge.query_tokens, parity_a.model.bridge.query_tokens)


def save_projection(path: Path, content: Any) -> None:
    if path.suffix == ".safetensors":
        save_file(content["model"], path, metadata=content.get("metadata"))
    else:
        torch.save(content, path)


def assert_refused(model: Any, path: Path, content: Any, *words: str) -> None:
    save_projection(path, content)
    before = model.llama_proj.weight.clone()
    with pytest.raises(CheckpointError) as caught:
        load_projection(model, path)
    for word in (str(path), *words):
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)
    assert torch.equal(model.llama_proj.weight, before)


def test_projection_for_another_width(fresh: Any, tmp_path: Path) -> None:
    state = {"llama_proj.weight": torch.zeros(5120, 48), "llama_proj.bias": torch.zeros(5120)}
    assert_refused(fresh, tmp_path / "c.pth", {"model": state}, "(5120, 48)", "width 64", "model.llama_model")


def test_checkpoint_without_projection(fresh: Any, tmp_path: Path) -> None:
    assert_refused(
        fresh, tmp_path / "c.pth", {"model": {"t5_proj.weight": torch.zeros(2, 2)}}, "missing", "t5_proj.weight"
    )


def test_half_a_projection(parity_a: Case, fresh: Any, tmp_path: Path) -> None:
    state = {"llama_proj.weight": projection(parity_a)["llama_proj.weight"]}
    assert_refused(fresh, tmp_path / "c.pth", {"model": state}, "llama_proj.bias")


@pytest.mark.parametrize("name", ["c.pth", "c.safetensors"])
def test_a_projection_of_stage_1_goes_into_any_template(parity_a: Case, fresh: Any, tmp_path: Path, name: str) -> None:
    metadata = {"prompt_template": "{}", "end_sym": "\n"}
    save_projection(tmp_path / name, {"model": projection(parity_a), "metadata": metadata})
    load_projection(fresh, tmp_path / name)
    assert torch.equal(fresh.llama_proj.weight, projection(parity_a)["llama_proj.weight"])
    content = {"model": projection(parity_a), "metadata": metadata | {"num_query_token": "7"}}
    assert_refused(fresh, tmp_path / f"other_{name}", content, "num_query_token")


@pytest.mark.parametrize("name", ["c.pth", "c.safetensors"])
def test_checkpoint_of_another_template(parity_a: Case, fresh: Any, tmp_path: Path, name: str) -> None:
    content = {"model": projection(parity_a), "metadata": {"prompt_template": "[INST] {} [/INST]"}}
    assert_refused(fresh, tmp_path / name, content, "[INST] {} [/INST]", "model.prompt_template")


@pytest.mark.parametrize("name", ["c.pth", "c.safetensors"])
def test_other_base_weights_and_sizes_are_warnings(
    parity_a: Case, fresh: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    metadata = fresh.metadata() | {"base.llama_model": "0123456789abcdef", "base.vit_blocks": "39"}
    save_projection(tmp_path / name, {"model": projection(parity_a), "metadata": metadata})
    with caplog.at_level(logging.WARNING):
        load_projection(fresh, tmp_path / name)
    assert "other files of llama_model than" in caplog.text
    assert f"other sizes (vit_blocks was 39, is {parity_a.config['vit']['depth']})" in caplog.text


def test_the_sizes_of_the_image_encoders_are_recorded(parity_a: Case) -> None:
    metadata = parity_a.model.metadata()
    assert metadata["base.image_size"] == str(parity_a.config["image_size"])
    assert metadata["base.vit_model"] == "eva_giant_patch14_224"
    assert '"embed_dim"' in metadata["base.vit_args"] and '"hidden_size"' in metadata["base.q_former_args"]


@pytest.mark.parametrize("own", [{}, {"format": "pt"}])
def test_a_projection_of_another_tool_or_an_older_version_loads_silently(
    parity_a: Case, fresh: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, own: dict[str, str]
) -> None:
    fresh.encoder.template = replace(fresh.encoder.template, system="Be kind.")
    save_projection(tmp_path / "c.safetensors", {"model": projection(parity_a), "metadata": own})
    load_projection(fresh, tmp_path / "c.safetensors")
    assert not caplog.records


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["llama_proj.weight", "llama_proj.bias"])
def test_a_projection_that_is_not_finite(parity_a: Case, fresh: Any, tmp_path: Path, name: str, value: float) -> None:
    state = projection(parity_a)
    state[name].view(-1)[-1] = value
    assert_refused(fresh, tmp_path / "c.pth", {"model": state}, name, "NaN, infinity")


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("change", [Tensor.to_sparse, Tensor.to_sparse_csr, lambda tensor: tensor.to("meta")])
def test_a_projection_without_dense_values(
    parity_a: Case, fresh: Any, tmp_path: Path, change: Callable[[Tensor], Tensor]
) -> None:
    state = projection(parity_a)
    state["llama_proj.weight"] = change(state["llama_proj.weight"])
    assert_refused(fresh, tmp_path / "c.pth", {"model": state}, "llama_proj.weight is sparse or has no values")


@pytest.mark.parametrize("key", [1, None, b"a", ("a", 1)])
def test_keys_that_are_no_names(parity_a: Case, fresh: Any, tmp_path: Path, key: Any) -> None:
    state: dict[Any, Any] = dict(projection(parity_a))
    save_projection(tmp_path / "a.pth", {"model": {key: state["llama_proj.bias"], **state}})
    load_projection(fresh, tmp_path / "a.pth")
    assert torch.equal(fresh.llama_proj.weight, state["llama_proj.weight"])
    assert_refused(fresh, tmp_path / "c.pth", {"model": {key: state["llama_proj.bias"]}}, "missing llama_proj")


def test_a_projection_of_integers(parity_a: Case, fresh: Any, tmp_path: Path) -> None:
    state = {name: tensor.long() for name, tensor in projection(parity_a).items()}
    assert_refused(fresh, tmp_path / "c.pth", {"model": state}, "llama_proj.weight", "floating-point")


RANDOM_PARTS = {"vit_weights": None, "q_former_model": None}


@pytest.mark.parametrize("key", RANDOM_PARTS)
def test_a_frozen_part_without_weights_is_refused(parity_a: Case, key: str) -> None:
    with pytest.raises(ConfigError, match=rf"model\.{key} is not set: .*model\.allow_random"):
        build_with(parity_a, **{key: None})
    with pytest.raises(ConfigError, match=rf"model\.{key} is not set"):
        build_model(model_config(parity_a.folder, **{key: None}), CPU, torch.float32, with_encoders=False)


def test_random_frozen_parts_are_the_same_at_each_load_and_named(
    parity_a: Case, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(1)
    first = build_with(parity_a, allow_random=True, **RANDOM_PARTS)
    assert [key for key in RANDOM_PARTS if f"model.{key} is not set: that frozen part has random" in caplog.text]
    second = build_with(parity_a, allow_random=True, **RANDOM_PARTS)
    for part in ("visual_encoder", "bridge"):
        ours, theirs = getattr(first, part).state_dict(), getattr(second, part).state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert first.bridge.query_tokens.std() > 0
    plain = build_with(parity_a)
    for key in RANDOM_PARTS:
        assert first.base[key] == second.base[key] != plain.base[key]
        assert first.metadata()[f"base.{key}"].startswith("random:")
    cfg = model_config(parity_a.folder, allow_random=True, **RANDOM_PARTS)
    identity = cache_identity(cfg, CLIP, torch.float32)
    assert all(identity[key] == first.base[key] for key in RANDOM_PARTS)


def test_random_frozen_parts_leave_the_random_state_alone(parity_a: Case) -> None:
    torch.manual_seed(1)
    loaded = build_with(parity_a, ckpt=None).llama_proj.weight
    torch.manual_seed(1)
    drawn = build_with(parity_a, ckpt=None, allow_random=True, **RANDOM_PARTS).llama_proj.weight
    assert torch.equal(loaded, drawn)


@pytest.mark.parametrize("key", ["vit_weights", "q_former_model", "llama_model", "ckpt"])
def test_missing_paths_name_key_and_variable(parity_a: Case, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_with(parity_a, **{key: "nowhere/some/file"})
    assert f"model.{key}" in str(caught.value)
    assert "nowhere/some/file" in str(caught.value)
    assert "MINIGPT4_WEIGHTS" in str(caught.value)


def test_a_second_projection_shares_the_frozen_parts(parity_a: Case, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "c.pth", {"model": projection(parity_a)})
    second = with_projection(parity_a.model, tmp_path / "c.pth")
    assert torch.equal(second.llama_proj.weight, parity_a.model.llama_proj.weight + 1)
    assert second.llama_model is parity_a.model.llama_model and second.bridge is parity_a.model.bridge


def test_an_unknown_architecture(parity_a: Case) -> None:
    with pytest.raises(ConfigError, match=r"unknown model 'minigpt5'; did you mean 'minigpt4'"):
        build_with(parity_a, arch="minigpt5")


def test_a_tokenizer_with_more_tokens_than_the_language_model_embeds(parity_a: Case, tmp_path: Path) -> None:
    folder = shutil.copytree(parity_a.folder / "llama", tmp_path / "llama")
    (folder / "added_tokens.json").write_text('{"<new>": 100000}')
    with pytest.raises(ConfigError, match="has 100001 tokens, the language model embeds"):
        build_with(parity_a, llama_model=str(folder))


def test_a_folder_without_its_tokenizer(parity_a: Case, tmp_path: Path) -> None:
    folder = shutil.copytree(parity_a.folder / "llama", tmp_path / "llama")
    (folder / "tokenizer.model").unlink()
    with pytest.raises(ConfigError, match=r"no tokenizer\.model and no tokenizer\.json; copy") as caught:
        build_with(parity_a, llama_model=str(folder))
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_a_tokenizer_is_compared_with_the_embeddings_themselves(parity_a: Case, tmp_path: Path) -> None:
    folder = shutil.copytree(parity_a.folder / "llama", tmp_path / "llama")
    described = json.loads((folder / "config.json").read_text())
    state = load_file(folder / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        state[name] = state[name].repeat(3, 1)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(described | {"vocab_size": 2400}))
    with pytest.raises(ConfigError, match="has 800 tokens, the language model embeds 2400; they do not belong"):
        build_with(parity_a, llama_model=str(folder))


@pytest.mark.parametrize(
    "content",
    [
        '{"model_type": "llama", ',
        "[1, 2]",
        '"llama"',
        "{}",
        '{"hidden_size": 64}',
        '{"model_type": 7}',
        '{"model_type": "no such model"}',
        "[" * 100_000,
        "",
        "\x00\xff",
    ],
)
def test_a_damaged_description_of_the_language_model(parity_a: Case, tmp_path: Path, content: str) -> None:
    assert_description_refused(parity_a, tmp_path, content)


@pytest.mark.parametrize(
    "change",
    [{"vocab_size": "many"}, {"num_attention_heads": 0}, {"hidden_size": -64}, {"hidden_act": 3}, {"rms_norm_eps": []}],
)
def test_a_description_that_transformers_cannot_take(parity_a: Case, tmp_path: Path, change: dict[str, Any]) -> None:
    described = json.loads((parity_a.folder / "llama" / "config.json").read_text())
    assert_description_refused(parity_a, tmp_path, json.dumps(described | change))


def assert_description_refused(parity_a: Case, tmp_path: Path, content: str) -> None:
    folder = shutil.copytree(parity_a.folder / "llama", tmp_path / "llama")
    (folder / "config.json").write_text(content, encoding="latin-1")
    with pytest.raises(MiniGPT4Error) as caught:
        build_with(parity_a, llama_model=str(folder))
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("precision", "frozen", "reason"),
    [
        (Precision.auto, torch.float32, "auto, float32 is fastest on cpu and fits in its memory"),
        (Precision.float32, torch.float32, "float32"),
        (Precision.bfloat16, torch.bfloat16, "bfloat16"),
        (Precision.float16, torch.float16, "float16"),
    ],
)
def test_number_formats(
    precision: Precision, frozen: torch.dtype, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="minigpt4"):
        chosen = choose_precision(ModelConfig(precision=precision), CPU)
    assert (chosen.frozen, chosen.reason) == (frozen, reason)
    assert caplog.messages == [f"precision: {chosen}"]
    assert chosen.scale_loss == (frozen is torch.float16) == ("with a loss scale" in str(chosen))


@pytest.mark.parametrize(("capability", "native"), [((8, 0), torch.bfloat16), ((7, 5), torch.float16)])
def test_the_number_format_follows_the_device(
    capability: tuple[int, int], native: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    gpu = torch.device("cuda")
    assert choose_precision(ModelConfig(), gpu).frozen == native
    assert choose_precision(ModelConfig(precision=Precision.float32), gpu).frozen == torch.float32


class TestMemory:
    """Weights are compared with the memory that is free before the first is loaded."""

    @pytest.fixture
    def cfg(self, parity_a: Case) -> ModelConfig:
        return model_config(parity_a.folder)

    def test_weights_are_counted_by_their_files(self, cfg: ModelConfig, parity_a: Case) -> None:
        numbers = sum(p.numel() for p in parity_a.model.llama_model.parameters())
        for dtype in (torch.float32, torch.bfloat16):
            assert weight_bytes(cfg, dtype, with_encoders=False) == numbers * dtype.itemsize
        assert (
            weight_bytes(replace(cfg, low_resource=LowResource.nf4), torch.float32, with_encoders=False) == numbers // 2
        )
        weights = sum(p.nbytes for p in parity_a.model.parameters())
        assert weight_bytes(cfg, torch.float32) == pytest.approx(weights, rel=0.2)

    def test_shards_and_other_formats_count_once(self, cfg: ModelConfig, parity_a: Case, tmp_path: Path) -> None:
        llm = parity_a.model.llama_model
        llm.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
        shutil.copy(next((tmp_path / "shards").glob("*-of-*")), tmp_path / "shards" / "copy.safetensors")
        torch.save(llm.state_dict(), tmp_path / "pytorch_model.bin")
        shutil.copy(tmp_path / "shards" / "config.json", tmp_path)
        expected = weight_bytes(cfg, torch.float32, with_encoders=False)
        for folder, tolerance in ((tmp_path / "shards", 0), (tmp_path, 0.05)):  # a .bin has an overhead
            counted = weight_bytes(replace(cfg, llama_model=str(folder)), torch.float32, with_encoders=False)
            assert counted == pytest.approx(expected, rel=tolerance)
        assert weight_bytes(ModelConfig(llama_model=str(tmp_path / "missing")), torch.float32) == 0

    def test_auto_takes_the_format_that_fits(self, cfg: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
        needed = weight_bytes(cfg, torch.float32)
        monkeypatch.setattr(loading, "free_memory", lambda device: needed)
        assert choose_precision(cfg, CPU).frozen == torch.float32
        assert choose_precision(cfg, CPU, processes=2).frozen == torch.bfloat16
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
        chosen = choose_precision(cfg, CPU)
        assert chosen.frozen == torch.bfloat16 and "float32 would take 0.0 GiB of the 0.0 GiB" in chosen.reason
        assert choose_precision(replace(cfg, precision=Precision.float32), CPU).frozen == torch.float32

    def test_a_load_that_does_not_fit_is_refused(self, cfg: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
        half = weight_bytes(cfg, torch.bfloat16)
        monkeypatch.setattr(loading, "free_memory", lambda device: half)
        with pytest.raises(ConfigError, match=r"in float32, and .* free on cpu; set model\.precision=bfloat16 \("):
            build_model(cfg, CPU, torch.float32)
        assert build_model(cfg, CPU, torch.bfloat16).llama_model.dtype == torch.bfloat16
        monkeypatch.setattr(loading, "free_memory", lambda device: half - 1)
        with pytest.raises(ConfigError, match=r"in bfloat16, .*set model\.low_resource=8bit \(.*\) or model\.low_"):
            build_model(cfg, CPU, torch.bfloat16)
        monkeypatch.setattr(loading, "free_memory", lambda device: 0)
        with pytest.raises(ConfigError, match="take a smaller model, or free memory"):
            build_model(cfg, CPU, torch.bfloat16)

    def test_free_memory_is_that_of_the_machine(self) -> None:
        assert 0 < free_memory(CPU) < 2**50
