"""The frozen language model: folders that do not load, quantisation, sharding, compilation."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.autograd.graph import saved_tensors_hooks

from minigpt4.common.distributed import Processes
from minigpt4.common.errors import CheckpointError, ConfigError
from minigpt4.common.files import PROJECT
from minigpt4.common.schema import LlmSharding, LoraConfig, LowResource
from minigpt4.common.types import Batch
from minigpt4.models.llm import block_stacks, build_llm, compile_blocks, recompute_blocks, shards_llm
from minigpt4.models.lora import add_lora
from minigpt4.models.minigpt4 import packed_losses, padded_losses
from tests.launch import launch
from tests.models.parity import CPU, Case, build_with
from tests.models.small_llm import embeddings, language_model, make_batch

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler (g++)")


def test_folder_without_language_model(parity_a: Case, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.llama_model"):
        build_with(parity_a, llama_model=str(tmp_path))


def test_truncated_language_model(parity_a: Case, tmp_path: Path) -> None:
    for file in (parity_a.folder / "llama").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"model\.llama_model: the weights"):
        build_with(parity_a, llama_model=str(tmp_path))


def test_language_model_with_missing_weights(parity_a: Case, tmp_path: Path) -> None:
    for file in (parity_a.folder / "llama").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    state = load_file(tmp_path / "model.safetensors")
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="1 weights are missing"):
        build_with(parity_a, llama_model=str(tmp_path))


def test_pytorch_bin_language_model(parity_a: Case, tmp_path: Path) -> None:
    for file in (parity_a.folder / "llama").iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save(load_file(parity_a.folder / "llama" / "model.safetensors"), tmp_path / "pytorch_model.bin")
    model = build_with(parity_a, llama_model=str(tmp_path))
    assert torch.equal(model.llama_model.lm_head.weight, parity_a.model.llama_model.lm_head.weight)


def test_weights_to_be_sharded_keep_the_number_format_of_their_files(parity_a: Case, tmp_path: Path) -> None:
    folder = shutil.copytree(parity_a.folder / "llama", tmp_path / "llama")
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(described | {"torch_dtype": "bfloat16"}))
    llm = build_llm(folder, LowResource.off, None, CPU)
    assert {weight.dtype for weight in llm.parameters()} == {torch.float16}


@pytest.mark.parametrize(
    ("low_resource", "tolerance", "alike"), [(LowResource.int8, 0.02, 0.98), (LowResource.nf4, 0.12, 0.75)]
)
def test_quantised_language_model(parity_a: Case, low_resource: LowResource, tolerance: float, alike: float) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    model = build_with(parity_a, low_resource=low_resource)
    assert model.device == CPU
    layer = model.llama_model.get_decoder().layers[0].self_attn.q_proj
    assert layer.weight.dtype in (torch.int8, torch.uint8)
    batch = parity_a.training_batch()
    loss = model(batch) / batch.num_targets
    reference = parity_a.model(batch) / batch.num_targets
    assert loss.item() == pytest.approx(reference.item(), rel=tolerance)
    assert loss.item() != reference.item()
    loss.backward()
    parity_a.model.zero_grad()
    reference.backward()
    ours, plain = model.llama_proj.weight.grad, parity_a.model.llama_proj.weight.grad
    assert torch.nn.functional.cosine_similarity(ours.flatten(), plain.flatten(), dim=0) > alike


def two_ranks() -> Processes:
    return Processes(device=CPU, world_size=2)


def test_quantised_weights_are_not_sharded() -> None:
    assert shards_llm(LlmSharding.all, LowResource.off, two_ranks())
    with pytest.raises(ConfigError, match=r"run\.shard_llm: all .* model\.low_resource=4bit"):
        shards_llm(LlmSharding.all, LowResource.nf4, two_ranks())


def test_a_single_process_holds_all_weights(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not shards_llm(LlmSharding.node, LowResource.off, Processes(device=CPU))
    assert "only one process to shard over" in caplog.text
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert shards_llm(LlmSharding.node, LowResource.off, two_ranks())


PROGRAM = """
import os
from dataclasses import replace
from pathlib import Path
import torch
from minigpt4.common.distributed import start_processes
from minigpt4.common.schema import LlmSharding
from minigpt4.models.loading import build_model
from minigpt4.models.llm import shard_llm
from tests.models.parity import model_config
from tests.models.small_llm import make_batch

processes = start_processes("cpu")
os.environ["LOCAL_WORLD_SIZE"] = "2"  # as on machines with two processes each
text = make_batch(((9 + processes.rank, 4), (30, 1)))
features = torch.randn(1, 8, 48, generator=torch.Generator().manual_seed(processes.rank))
image = replace(text, images=features, image_positions=torch.arange(8) + 35)
expected = {}
for sharding in (None, LlmSharding.node, LlmSharding.all):
    torch.manual_seed(0)
    cfg = model_config(Path("tests/fixtures/parity_a"), recompute_llm=sharding is not None)
    model = build_model(cfg, processes.device, torch.float32, keep_llm_on_cpu=sharding is not None)
    trained = model.llama_model.model.layers[1].post_attention_layernorm.weight.requires_grad_()
    trained.data = trained.data.float()  # as adapters are
    frozen = [name for name, p in model.llama_model.named_parameters() if not p.requires_grad]
    size = sum(model.llama_model.get_parameter(name).numel() for name in frozen)
    if sharding is not None:
        shard_llm(model, torch.float32, sharding, processes)
        held = sum(model.llama_model.get_parameter(name).to_local().numel() for name in frozen)
        kinds = {b.dtype for b in model.llama_model.buffers() if b.is_floating_point()}
        print(f"<{sharding.value}: {processes.rank} holds {held / size:.2f}, buffers in {kinds}>", flush=True)
        assert trained is model.llama_model.model.layers[1].post_attention_layernorm.weight
    for trains in (True, False):
        trained.requires_grad_(trains)
        # Blocks are gathered on all ranks alike, also where a rank has no images and so nothing to train.
        for kind, batch in (("images", image), ("mixed", text if processes.rank else image)):
            model.zero_grad()
            loss = model(batch)
            loss.backward()
            gradients = [trained.grad, *(p.grad for p in model.llama_proj.parameters())]
            found = {number: g for number, g in enumerate([loss.detach(), *gradients]) if g is not None}
            torch.testing.assert_close(found, expected.setdefault((kind, trains), found), rtol=1e-5, atol=1e-6)
            assert (1 in found) is trains
            assert (2 in found) is (kind == "images" or processes.rank == 0)
    if sharding is not None:
        print(f"<{sharding.value}: {processes.rank} agrees>", flush=True)
processes.shutdown()
"""


@pytest.mark.distributed
@pytest.mark.slow
def test_each_process_holds_its_share(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    done = launch(str(script), ranks=4, cwd=PROJECT)
    assert done.returncode == 0, done.stderr
    for rank in range(4):
        for sharding, share in (("node", "0.50"), ("all", "0.25")):
            assert f"<{sharding}: {rank} holds {share}, buffers in {{torch.float32}}>" in done.stdout
            assert f"<{sharding}: {rank} agrees>" in done.stdout


@pytest.mark.parametrize(
    ("kind", "losses_of"), [("llama", packed_losses), ("llama", padded_losses), ("opt", padded_losses)]
)
def test_recomputed_blocks_have_the_same_gradients_and_keep_less(
    kind: str, losses_of: Callable[[nn.Module, Tensor, Batch], Tensor]
) -> None:
    options = {"word_embed_proj_dim": 32, "dropout": 0.5} if kind == "opt" else {}
    model, batch = deepcopy(language_model(kind, **options)), make_batch()
    add_lora(model, LoraConfig(r=2, dropout=0.3)).train(True)
    adapters = [weight for weight in model.parameters() if weight.requires_grad]
    for number, weight in enumerate(adapters):
        torch.nn.init.normal_(weight, generator=torch.Generator().manual_seed(number))
    results, kept = [], []
    for _ in range(2):
        sizes: list[int] = []
        embeds = embeddings(model, batch)
        torch.manual_seed(0)  # of the adapters' dropout, which recomputation has to repeat
        with saved_tensors_hooks(lambda tensor, sizes=sizes: (sizes.append(tensor.numel()), tensor)[1], lambda x: x):
            losses = losses_of(model, embeds, batch)
        results.append((losses.detach(), *torch.autograd.grad(losses.sum(), [embeds, *adapters])))
        kept.append(sum(sizes))
        recompute_blocks(model)
    assert all(map(torch.equal, *results)) and len(results[0]) == 2 + 2 * 2 * len(block_stacks(model)[0])
    assert all(bool(gradient.any()) for gradient in results[0])
    assert kept[1] < kept[0] / 2


class Marked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.compiled: list[bool | None] = []

    def compile(self, *args: object, dynamic: bool | None = None, **kwargs: object) -> None:
        self.compiled.append(dynamic)


def test_the_outermost_stacks_are_compiled_with_free_sizes() -> None:
    model = nn.Module()
    model.encoder = nn.Module()
    model.encoder.layers = nn.ModuleList([Marked(), Marked()])
    model.encoder.layers[0].parts = nn.ModuleList([Marked()])
    model.head = Marked()
    compile_blocks(model, None)
    assert [block.compiled for block in model.encoder.layers] == [[True], [True]]
    assert model.head.compiled == [] and model.encoder.layers[0].parts[0].compiled == []


@needs_compiler
@pytest.mark.slow
def test_compiled_steps_give_the_same_loss_and_gradient(parity_a: Case, tmp_path: Path) -> None:
    torch._dynamo.reset()
    counters.clear()
    model = build_with(parity_a, compile=True)
    inputs = parity_a.inputs["train_list"]
    graphs = []
    for answers in (inputs["answer"], [answer + " and more" for answer in inputs["answer"]], ["one", "two three"]):
        batch = parity_a.batch(inputs["images"], inputs["instruction"], answers)
        results = []
        for each in (model, parity_a.model):
            each.zero_grad()
            loss = each(batch)
            loss.backward()
            results.append((loss.detach(), each.llama_proj.weight.grad.clone()))
        (loss, gradient), (plain_loss, plain_gradient) = results
        torch.testing.assert_close(loss, plain_loss, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(gradient, plain_gradient, rtol=1e-3, atol=1e-4)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] > 0
    assert graphs[0] == graphs[1] == graphs[2]
