"""Training from cached features: the same numbers, no encoders in memory, and never a stale cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from minigpt4.common.config import load_config
from minigpt4.common.distributed import Processes
from minigpt4.common.errors import DataError
from minigpt4.datasets.builders import build_datasets
from minigpt4.datasets.instruction import InstructionDataset
from minigpt4.models.loading import build_model, build_prompt_encoder
from minigpt4.runners import cached_features, precompute
from tests.launch import launch
from tests.runners.project import Project, printed_losses

CPU = torch.device("cpu")
CACHE = "datasets.shapes.feature_cache=cache"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.chdir(tmp_path)
    return Project.make(tmp_path)


def use(*options: str) -> tuple[bool, list[dict[str, InstructionDataset]]]:
    cfg = load_config("config.yaml", [CACHE, *options]).config
    encoder = build_prompt_encoder(cfg.model)
    groups = [
        build_datasets(cfg.datasets, cfg.model, encoder, [split], seed=cfg.run.seed, train=split == "train")
        for split in ("train", "val")
    ]
    return cached_features.attach_feature_caches(
        groups, cfg.datasets, cfg.model, cfg.run, torch.float32, Processes(device=CPU)
    ), groups


def losses(project: Project, name: str, *options: str) -> dict[int, float]:
    """Losses of a run of one epoch by step."""
    folder = project.train_here(f"run.run_dir={name}", "run.max_epoch=1", *options)
    return {step: float(loss) for step, loss in printed_losses((folder / "train.log").read_text()).items()}


def test_the_same_losses_without_the_encoders(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = losses(project, "plain")
    first = losses(project, "first", CACHE)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("the encoders were loaded")

    monkeypatch.setattr("minigpt4.models.loading.build_image_encoders", never)
    monkeypatch.setattr(cached_features, "build_image_encoders", never)
    second = losses(project, "second", CACHE)
    assert len(plain) == 6
    assert second == first
    assert first == pytest.approx(plain, rel=1e-3)


def test_cached_features_are_those_of_the_model(project: Project) -> None:
    complete, (group, _) = use()
    assert complete
    cached = group["shapes"]
    cfg = load_config("config.yaml").config
    model = build_model(cfg.model, CPU, torch.float32)
    plain = build_datasets(cfg.datasets, cfg.model, model.encoder, ["train"], seed=cfg.run.seed, train=True)["shapes"]
    for index in (0, 5, 23):
        expected = model.encode_queries(plain.open_image(index)[None])[0]
        assert cached.open_image(index).dtype == torch.float16
        torch.testing.assert_close(cached.open_image(index).float(), expected, rtol=1e-3, atol=1e-3)
    assert not torch.equal(cached.open_image(0), cached.open_image(1))


def test_only_what_is_missing_is_computed(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached_features, "SHARD_IMAGES", 10)
    use()
    shards = sorted(Path("cache").glob("*.safetensors"))
    assert len(shards) == 4  # 24 training images in three, 7 of validation in one
    times = {shard: shard.stat().st_mtime_ns for shard in shards}
    shards[1].unlink()
    complete, (_, group) = use()
    assert complete
    assert len(group["shapes"].feature_cache or ()) == 31  # validation's is opened last, so it holds both splits
    kept = {shard for shard, time in times.items() if shard.exists() and shard.stat().st_mtime_ns == time}
    assert kept >= set(shards) - {shards[1]}


@pytest.mark.parametrize(
    ("option", "key"),
    [("model.vit_blocks=2", "vit_blocks was 3, is 2"), ("model.q_former_model=other.pth", "q_former_model was")],
)
def test_a_stale_cache_is_refused(project: Project, option: str, key: str) -> None:
    use()
    source = load_config("config.yaml").config.model.q_former_model
    content = torch.load(str(source), weights_only=True)
    content["model"]["query_tokens"] += 1
    torch.save(content, "other.pth")
    with pytest.raises(DataError, match=rf"cache is stale: .*{key}"):
        use(option)


def test_a_broken_shard_is_named(project: Project) -> None:
    use()
    shard = next(Path("cache").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(DataError, match=rf"{shard.name} is broken .* delete it"):
        use()


def test_an_unreadable_image_is_replaced_as_without_a_cache(project: Project) -> None:
    Path("image_3.png").write_bytes(b"no image")
    complete, (group, _) = use()
    assert complete
    sample = group["shapes"].sample(3, epoch=0)
    assert sample.image_id != "image_3"
    assert "image_3.png" in sample.skipped[0]


@pytest.mark.distributed
@pytest.mark.slow
def test_the_command_under_two_processes(project: Project) -> None:
    done = launch("-m", "minigpt4.runners.precompute", "--cfg-path", "config.yaml", "--options", CACHE, ranks=2)
    assert done.returncode == 0, done.stderr[-3000:]
    names = {name for shard in Path("cache").glob("*.safetensors") for name in _names(shard)}
    assert len(names) == 31
    assert len(list(Path("cache").glob("*.safetensors"))) == 4  # two processes, two splits


def _names(shard: Path) -> list[str]:
    import json

    from safetensors import safe_open

    return json.loads(safe_open(shard, framework="pt").metadata()["names"])  # type: ignore[no-any-return]


def test_the_command_without_a_cache_configured(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        precompute.main(["--cfg-path", "config.yaml"])
    assert "no dataset has a feature_cache" in capsys.readouterr().err
