"""A language model sharded among ranks trains the projection as complete copies do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from minigpt4.common.checkpoint import read_checkpoint
from minigpt4.common.distributed import Processes
from minigpt4.common.errors import ConfigError
from minigpt4.common.schema import LlmSharding, LowResource
from minigpt4.models.llm import build_llm, shards_llm
from tests.runners.conftest import PAIR
from tests.runners.project import PARITY_A, REPOSITORY, TIMEOUT, Project, read_epochs, tensorboard_scalars

PROGRAM = """
import os
import torch
from minigpt4.common.distributed import start_processes
from minigpt4.common.distributed import SharedGradients
from minigpt4.common.schema import LlmSharding
from minigpt4.models.loading import build_model
from minigpt4.models.llm import shard_llm
from tests.models.parity import model_config
from tests.models.small_llm import make_batch
from tests.runners.project import PARITY_A

processes = start_processes("cpu")
os.environ["LOCAL_WORLD_SIZE"] = "2"  # as on machines with two processes each
cfg = model_config(PARITY_A)
batch = make_batch(((9 + processes.rank, 4), (30, 1)))
results = []
for sharding in (None, LlmSharding.node, LlmSharding.all):
    torch.manual_seed(0)
    model = build_model(cfg, processes.device, torch.float32, keep_llm_on_cpu=sharding is not None)
    size = sum(p.numel() for p in model.llama_model.parameters())
    if sharding is not None:
        shard_llm(model, torch.float32, sharding, processes)
        held = sum(p.to_local().numel() for p in model.llama_model.parameters())
        kinds = {b.dtype for b in model.llama_model.buffers() if b.is_floating_point()}
        print(f"<{sharding.value}: {processes.rank} holds {held / size:.2f}, buffers in {kinds}>", flush=True)
    shared = SharedGradients(model, processes)
    loss = model(batch)  # without images: the projection must take part all the same
    loss.backward()
    results.append((sharding, loss.detach(), model.get_parameter("llama_proj.module.weight").grad))
_, expected, expected_gradient = results[0]
for sharding, loss, gradient in results[1:]:
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient, expected_gradient)
    print(f"<{sharding.value}: {processes.rank} agrees>", flush=True)
processes.shutdown()
"""


@pytest.mark.distributed
@pytest.mark.slow
def test_the_same_curve_weights_and_files_as_with_complete_copies(project: Project, pair: Path) -> None:
    status, output = project.train(*PAIR, "run.run_dir=sharded", "run.shard_llm=all", processes=2)
    assert status == 0, output
    assert "each process holds 1/2 of the language model's weights" in output
    sharded = project.folder / "sharded"
    expected, found = (dict(tensorboard_scalars(run)) for run in (pair, sharded))
    assert list(found) == list(expected) == list(range(80))
    assert max(abs(found[step] - expected[step]) for step in expected) < 1e-4
    for one, other in zip(*(read_epochs(folder) for folder in (pair, sharded)), strict=True):
        assert other["val_loss"] == pytest.approx(one["val_loss"], abs=1e-5)
    assert {file.name for file in sharded.iterdir()} == {file.name for file in pair.iterdir()}
    first, second = (read_checkpoint(folder / "checkpoint_1.pth") for folder in (pair, sharded))
    assert list(first) == list(second) and list(first["model"]) == list(second["model"])
    torch.testing.assert_close(second["model"], first["model"], rtol=0, atol=1e-5)
    torch.testing.assert_close(second["optimizer"], first["optimizer"], rtol=1e-3, atol=1e-5)


@pytest.mark.distributed
@pytest.mark.slow
def test_a_run_resumes_without_sharding_and_validates_fewer_images_than_ranks(tmp_path: Path) -> None:
    """One image to validate on: the second rank has none, and computes all the same."""
    project = Project.make(tmp_path, train=8, val=1)
    options = ("run.run_dir=run", "run.batch_size=2")
    status, output = project.train(*options, "run.shard_llm=node", "run.max_epoch=1", processes=2)
    assert status == 0, output
    (epoch,) = read_epochs(tmp_path / "run")
    project.train_here(*options, "run.batch_size=4", "run.max_epoch=2", "run.resume_ckpt_path=auto")
    again = read_epochs(tmp_path / "run")
    assert again[0] == epoch and len(again) == 2
    assert 0 < again[1]["val_loss"] < 2 * epoch["val_loss"]


@pytest.mark.distributed
@pytest.mark.slow
def test_each_process_holds_its_share(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4", str(script)]
    done = subprocess.run(
        [sys.executable, *command],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 0, done.stderr
    for rank in range(4):
        for sharding, share in (("node", "0.50"), ("all", "0.25")):
            assert f"<{sharding}: {rank} holds {share}, buffers in {{torch.float32}}>" in done.stdout
            assert f"<{sharding}: {rank} agrees>" in done.stdout


def pair() -> Processes:
    return Processes(device=torch.device("cpu"), world_size=2)


def test_quantised_weights_are_not_sharded() -> None:
    assert shards_llm(LlmSharding.all, LowResource.off, pair())
    with pytest.raises(ConfigError, match=r"run\.shard_llm: all .* model\.low_resource=4bit"):
        shards_llm(LlmSharding.all, LowResource.nf4, pair())


def test_a_single_process_holds_all_weights(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not shards_llm(LlmSharding.node, LowResource.off, Processes(device=torch.device("cpu")))
    assert "only one process to shard over" in caplog.text
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert shards_llm(LlmSharding.node, LowResource.off, pair())


def test_weights_to_be_sharded_come_in_their_files_number_format(tmp_path: Path) -> None:
    folder = shutil.copytree(PARITY_A / "llama", tmp_path / "llama")
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(described | {"torch_dtype": "bfloat16"}))
    llm = build_llm(folder, LowResource.off, None, torch.device("cpu"))
    assert {weight.dtype for weight in llm.parameters()} == {torch.float16}
