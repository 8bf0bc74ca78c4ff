"""A language model divided among processes trains the projection as whole ones do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from minigpt4.common.dist import Processes
from minigpt4.common.errors import ConfigError
from minigpt4.common.log import read_epochs
from minigpt4.common.schema import Config, LlmSharding, LowResource
from minigpt4.models.llm import build_llm
from minigpt4.models.sharding import shards_llm
from tests.runners.project import PARITY_A, REPOSITORY, Project, losses

SHORT = ("run.iters_per_epoch=12", "run.max_epoch=2", "run.warmup_steps=4")

PROGRAM = """
import os, sys
import torch
from minigpt4.common.dist import start_processes
from minigpt4.common.parallel import SharedGradients
from minigpt4.common.schema import LlmSharding
from minigpt4.models.loading import build_model
from minigpt4.models.sharding import shard_llm
from tests.models.parity import model_config
from tests.models.test_packing import make_batch
from tests.runners.project import PARITY_A

processes = start_processes("cpu")
os.environ["LOCAL_WORLD_SIZE"] = "2"  # as on machines with two processes each
cfg = model_config(PARITY_A)
batch = make_batch(((9 + processes.rank, 4), (30, 1)))
results = []
for sharding in (None, LlmSharding(sys.argv[1])):
    torch.manual_seed(0)
    model = build_model(cfg, processes.device, torch.float32, llm_as_filed=sharding is not None)
    size = sum(p.numel() for p in model.llama_model.parameters())
    if sharding is not None:
        shard_llm(model, torch.float32, sharding, processes)
        held = sum(p.to_local().numel() for p in model.llama_model.parameters())
        frequencies = {b.dtype for b in model.llama_model.buffers() if b.is_floating_point()}
        print(f"<{processes.rank} holds {held / size:.2f}, buffers in {frequencies}>", flush=True)
    shared = SharedGradients(model, processes)
    loss = model(batch)  # without pictures: the projection must take part all the same
    loss.backward()
    results.append((loss.detach(), model.get_parameter("llama_proj.module.weight").grad))
(whole, whole_gradient), (divided, gradient) = results
torch.testing.assert_close(divided, whole, rtol=1e-6, atol=0)
torch.testing.assert_close(gradient, whole_gradient)
print(f"<{processes.rank} agrees>", flush=True)
processes.leave()
"""


@pytest.mark.distributed
@pytest.mark.slow
def test_the_same_curve_weights_and_files_as_with_whole_models(project: Project) -> None:
    curves = {}
    for run, sharding in (("whole", "off"), ("divided", "all")):
        status, output = project.train(f"run.run_dir={run}", f"run.shard_llm={sharding}", *SHORT, processes=2)
        assert status == 0, output
        assert ("each process holds 1/2 of the language model's weights" in output) == (sharding == "all")
        curves[run] = {step: float(loss) for step, loss in losses(output).items()}
    assert list(curves["whole"]) == list(range(24)) and len(set(curves["whole"].values())) > 12
    assert curves["divided"] == pytest.approx(curves["whole"], abs=1e-4)
    folders = [project.folder / run for run in curves]
    for one, other in zip(*(read_epochs(folder / "log.txt") for folder in folders), strict=True):
        assert other["val_loss"] == pytest.approx(one["val_loss"], abs=1e-5)
    files, others = ({path.name for path in folder.glob("checkpoint*")} for folder in folders)
    assert files == others and "checkpoint_1.pth" in files
    first, second = (project.checkpoint(run, "checkpoint_1.pth") for run in curves)
    assert list(first) == list(second) and list(first["model"]) == list(second["model"])
    torch.testing.assert_close(second["model"], first["model"], rtol=0, atol=1e-5)
    torch.testing.assert_close(second["optimizer"], first["optimizer"], rtol=1e-3, atol=1e-5)


@pytest.mark.distributed
@pytest.mark.slow
def test_a_run_goes_on_without_dividing_and_validates_less_than_there_are_processes(tmp_path: Path) -> None:
    """One picture to validate on: the second process has none, and computes along all the same."""
    project = Project.make(tmp_path, train=8, val=1)
    options = ("run.run_dir=run", "datasets.pictures.batch_size=2")
    status, output = project.train(*options, "run.shard_llm=node", "run.max_epoch=1", processes=2)
    assert status == 0, output
    (epoch,) = read_epochs(tmp_path / "run" / "log.txt")
    going_on = (*options, "datasets.pictures.batch_size=4", "run.max_epoch=2", "run.resume_ckpt_path=auto")
    project.train_here(*going_on)
    again = read_epochs(tmp_path / "run" / "log.txt")
    assert again[0] == epoch and len(again) == 2
    assert 0 < again[1]["val_loss"] < 2 * epoch["val_loss"]


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize("sharding, processes", [("all", 2), ("node", 4)])
def test_each_process_holds_half(tmp_path: Path, sharding: str, processes: int) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", str(script), sharding]
    done = subprocess.run(
        [sys.executable, *command],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    for rank in range(processes):
        assert f"<{rank} holds 0.50, buffers in {{torch.float32}}>" in done.stdout
        assert f"<{rank} agrees>" in done.stdout


def pair() -> Processes:
    return Processes(device=torch.device("cpu"), world_size=2)


def test_quantised_weights_are_not_divided() -> None:
    cfg = Config()
    cfg.run.shard_llm = LlmSharding.all
    assert shards_llm(cfg, pair())
    cfg.model.low_resource = LowResource.nf4
    with pytest.raises(ConfigError, match=r"run\.shard_llm: all .* model\.low_resource=4bit"):
        shards_llm(cfg, pair())


def test_one_process_alone_holds_all(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = Config()
    cfg.run.shard_llm = LlmSharding.node
    assert not shards_llm(cfg, Processes(device=torch.device("cpu")))
    assert "nobody to share with" in caplog.text
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert shards_llm(cfg, pair())


def test_weights_to_be_divided_come_in_their_files_number_format(tmp_path: Path) -> None:
    folder = shutil.copytree(PARITY_A / "llama", tmp_path / "llama")
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(described | {"torch_dtype": "bfloat16"}))
    llm = build_llm(folder, LowResource.off, None, torch.device("cpu"))
    assert {weight.dtype for weight in llm.parameters()} == {torch.float16}
