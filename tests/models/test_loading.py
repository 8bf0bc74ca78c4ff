"""Weights from disk: what fits loads, what does not says why."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from minigpt4.common.checkpoint import model_state, read_checkpoint, write_checkpoint
from minigpt4.common.errors import CheckpointError, ConfigError
from minigpt4.common.schema import ModelConfig
from minigpt4.models.loading import build_model, load_projection
from tests.models.parity import Case, model_config

CPU = torch.device("cpu")


def build(cfg: ModelConfig) -> Any:
    return build_model(cfg, CPU, torch.float32)


def projection(case: Case) -> dict[str, Tensor]:
    return {name: tensor + 1 for name, tensor in case.model.trainable_state().items()}


@pytest.fixture
def fresh(parity_a: Case) -> Any:
    return build(model_config(parity_a.folder, ckpt=None))


@pytest.mark.parametrize("prefix", ["", "module.", "module.module."])
def test_published_and_wrapped_names(parity_a: Case, fresh: Any, tmp_path: Path, prefix: str) -> None:
    state = {prefix + name: tensor for name, tensor in projection(parity_a).items()}
    torch.save({"model": state}, tmp_path / "ckpt.pth")
    load_projection(fresh, tmp_path / "ckpt.pth")
    assert torch.equal(fresh.llama_proj.weight, projection(parity_a)["llama_proj.weight"])


def test_safetensors_projection(parity_a: Case, fresh: Any, tmp_path: Path) -> None:
    save_file(projection(parity_a), tmp_path / "ckpt.safetensors")
    load_projection(fresh, tmp_path / "ckpt.safetensors")
    assert torch.equal(fresh.llama_proj.bias, projection(parity_a)["llama_proj.bias"])


def test_fresh_projection_without_checkpoint(parity_a: Case, fresh: Any) -> None:
    assert not torch.equal(fresh.llama_proj.weight, parity_a.model.llama_proj.weight)
    assert torch.equal(fresh.qformer.query_tokens, parity_a.model.qformer.query_tokens)


def assert_refused(model: Any, path: Path, content: Any, *words: str) -> None:
    torch.save(content, path)
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


def test_checkpoint_of_another_template(parity_a: Case, fresh: Any, tmp_path: Path) -> None:
    content = {"model": projection(parity_a), "metadata": {"prompt_template": "[INST] {} [/INST]"}}
    assert_refused(fresh, tmp_path / "c.pth", content, "[INST] {} [/INST]", "model.prompt_template")


def test_other_base_weights_are_a_warning(
    parity_a: Case, fresh: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    metadata = fresh.metadata() | {"base.llama_model": "0123456789abcdef"}
    write_checkpoint(tmp_path / "c.pth", {"model": projection(parity_a), "metadata": metadata})
    with caplog.at_level(logging.WARNING):
        load_projection(fresh, tmp_path / "c.pth")
    assert "other files of llama_model" in caplog.text


def test_truncated_checkpoint(parity_a: Case, fresh: Any, tmp_path: Path) -> None:
    path = tmp_path / "c.pth"
    torch.save({"model": projection(parity_a)}, path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(CheckpointError, match=r"c\.pth is truncated or no checkpoint"):
        load_projection(fresh, path)


def test_truncated_safetensors(parity_a: Case, fresh: Any, tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    save_file(projection(parity_a), path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(CheckpointError, match=r"c\.safetensors is truncated"):
        load_projection(fresh, path)


class Payload:
    """Would create a file when unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_with_code_is_refused_and_not_run(fresh: Any, tmp_path: Path, legacy: bool) -> None:
    path = tmp_path / "c.pth"
    content = {"model": Payload(tmp_path / "ran")}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match="would run code"):
        load_projection(fresh, path)
    assert not (tmp_path / "ran").exists()


def test_text_file_as_checkpoint(fresh: Any, tmp_path: Path) -> None:
    (tmp_path / "c.pth").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(CheckpointError, match=r"c\.pth is no checkpoint"):
        load_projection(fresh, tmp_path / "c.pth")


def test_write_checkpoint_is_atomic(tmp_path: Path) -> None:
    path = tmp_path / "c.pth"
    write_checkpoint(path, {"model": {"a": torch.ones(2)}, "epoch": 3})
    with pytest.raises(AttributeError):
        write_checkpoint(path, {"model": lambda: None})  # not picklable: the write fails half way
    assert read_checkpoint(path)["epoch"] == 3
    assert [file.name for file in tmp_path.iterdir()] == ["c.pth"]


@pytest.mark.parametrize(
    ("key", "variable"),
    [("vit_weights", "MINIGPT4_WEIGHTS"), ("q_former_model", "MINIGPT4_WEIGHTS"), ("llama_model", "MINIGPT4_WEIGHTS")],
)
def test_missing_paths_name_key_and_variable(parity_a: Case, key: str, variable: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(model_config(parity_a.folder, **{key: "nowhere/file"}))
    assert f"model.{key}" in str(caught.value)
    assert "nowhere/file" in str(caught.value)
    assert variable in str(caught.value)


def changed_file(source: Path, target: Path, change: Any) -> str:
    content = torch.load(source, weights_only=True)
    change(content.get("model", content))
    torch.save(content, target)
    return str(target)


@pytest.mark.parametrize(
    ("key", "file", "name"),
    [
        ("vit_weights", "eva_vit.pth", "blocks.1.attn.qkv.weight"),
        ("q_former_model", "qformer.pth", "Qformer.bert.encoder.layer.0.crossattention.self.key.weight"),
    ],
)
def test_a_missing_and_an_unknown_tensor_are_errors(
    parity_a: Case, tmp_path: Path, key: str, file: str, name: str
) -> None:
    source = parity_a.folder / file
    lacking = changed_file(source, tmp_path / "lacking.pth", lambda state: state.pop(name))
    with pytest.raises(CheckpointError, match="missing"):
        build(model_config(parity_a.folder, **{key: lacking}))
    surplus = changed_file(source, tmp_path / "surplus.pth", lambda state: state.update(stray=torch.zeros(1)))
    with pytest.raises(CheckpointError, match=r"unexpected.*stray"):
        build(model_config(parity_a.folder, **{key: surplus}))


def test_vision_file_with_too_few_blocks(parity_a: Case) -> None:
    with pytest.raises(CheckpointError, match=r"missing: blocks\.4"):
        build(model_config(parity_a.folder, vit_blocks=5))


def test_wrong_sizes_name_the_tensor(parity_a: Case) -> None:
    options = dict(model_config(parity_a.folder).vit_args, mlp_ratio=2.0)
    with pytest.raises(CheckpointError, match=r"blocks\.0\.mlp\.fc1\.weight has shape \(279, 64\)"):
        build(model_config(parity_a.folder, vit_args=options))


def test_unknown_backbone_and_unknown_option(parity_a: Case) -> None:
    with pytest.raises(ConfigError, match="timm cannot build 'eva_gigantic'"):
        build(model_config(parity_a.folder, vit_model="eva_gigantic"))
    with pytest.raises(ConfigError, match="has no field 'hiden_size'"):
        build(model_config(parity_a.folder, q_former_args={"hiden_size": 48}))


def test_folder_without_language_model(parity_a: Case, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.llama_model"):
        build(model_config(parity_a.folder, llama_model=str(tmp_path)))


def test_truncated_language_model(parity_a: Case, tmp_path: Path) -> None:
    for file in (parity_a.folder / "llama").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"model\.llama_model: the weights"):
        build(model_config(parity_a.folder, llama_model=str(tmp_path)))


def test_language_model_with_missing_weights(parity_a: Case, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    for file in (parity_a.folder / "llama").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    state = load_file(tmp_path / "model.safetensors")
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="1 weights are missing"):
        build(model_config(parity_a.folder, llama_model=str(tmp_path)))


def test_pytorch_bin_language_model(parity_a: Case, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    for file in (parity_a.folder / "llama").iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save(load_file(parity_a.folder / "llama" / "model.safetensors"), tmp_path / "pytorch_model.bin")
    model = build(model_config(parity_a.folder, llama_model=str(tmp_path)))
    assert torch.equal(model.llama_model.lm_head.weight, parity_a.model.llama_model.lm_head.weight)


def test_no_frozen_weight_is_filled_with_random_numbers(parity_a: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    filled: list[tuple[str, torch.Size]] = []

    def watch(name: str) -> None:
        original = getattr(torch.Tensor, name)

        def watched(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if tensor.device.type != "meta" and tensor.numel() > 1:
                filled.append((name, tensor.shape))
            return original(tensor, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, watched)

    for name in ("normal_", "uniform_", "trunc_normal_", "erfinv_"):
        if hasattr(torch.Tensor, name):
            watch(name)
    model = build(model_config(parity_a.folder))
    assert set(filled) <= {("uniform_", model.llama_proj.weight.shape), ("uniform_", model.llama_proj.bias.shape)}
    assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])


def test_qformer_names_survive_the_round_trip(parity_a: Case) -> None:
    published = model_state(read_checkpoint(parity_a.folder / "qformer.pth"))
    ours = parity_a.model.qformer.published_state()
    assert len(ours) > 50
    for name, tensor in ours.items():
        assert torch.equal(tensor, published[name]), name


def test_ln_vision_is_never_rounded(parity_a: Case) -> None:
    model = build_model(model_config(parity_a.folder), CPU, torch.bfloat16)
    assert model.qformer is not None
    assert torch.equal(model.qformer.ln_vision.weight, parity_a.model.qformer.ln_vision.weight)
    assert {tensor.dtype for tensor in model.qformer.bert.parameters()} == {torch.bfloat16}
