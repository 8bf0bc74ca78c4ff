"""What the command refuses before it reads a weight."""

from __future__ import annotations

from pathlib import Path

import pytest

from minigpt4.common.config import load_config
from minigpt4.common.errors import ExportError
from minigpt4.common.files import PROJECT
from minigpt4.export.__main__ import main
from minigpt4.export.fit import check_exportable
from tests.models.parity import Case, model_config

CONFIG = str(PROJECT / "eval_configs" / "quickstart.yaml")


@pytest.mark.parametrize(
    ("arch", "card", "reason"),
    [
        ("minigpt_v2", "llama2_7b", r"minigpt_v2 without a Q-Former joins four .*--language-model-only"),
        ("minigpt4", "llama2_7b_no_qformer", r"model\.has_qformer: minigpt4 without a Q-Former joins four"),
    ],
)
def test_models_that_no_class_of_transformers_is(arch: str, card: str, reason: str) -> None:
    with pytest.raises(ExportError, match=reason):
        check_exportable(load_config(None, [f"model.arch={arch}", f"model.model_type={card}"]).config.model)


def test_minigpt_v2_is_refused_by_name(parity_v: Case) -> None:
    with pytest.raises(ExportError, match="minigpt_v2 without a Q-Former"):
        check_exportable(model_config(parity_v.folder))


def test_random_networks_are_not_exported() -> None:
    cfg = load_config(None, ["model.q_former_model=null", "model.allow_random=true"]).config
    with pytest.raises(ExportError, match=r"model\.q_former_model is not set: a random network"):
        check_exportable(cfg.model)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--private"], "--private: it belongs to --push-to-hub"),
        (["--no-verify", "--push-to-hub", "me/model"], "--push-to-hub uploads what was verified"),
        (["--no-verify", "--images", "."], "--images: nothing is compared with --no-verify"),
        (["--language-model-only", "--no-verify"], "does nothing else; leave --no-verify out"),
        (["--options", "model.low_resource=4bit"], "model.low_resource: 4bit weights are not exported"),
        (["--options", "model.ckpt=null"], "name it by --ckpt FILE or model.ckpt"),
        (["--ckpt", "nowhere.pth"], "model.ckpt: nowhere.pth does not exist"),
        (
            ["--options", "model.has_qformer=false", "model.q_former_model=null", "model.num_query_token=32"],
            "model.has_qformer: ",
        ),
        (["--images", "nowhere"], "--images: nowhere is no image and no folder of images"),
    ],
)
def test_mistakes_are_named_and_leave_nothing(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["--cfg-path", CONFIG, "--out", str(tmp_path / "out"), *arguments])
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_existing_folder_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--cfg-path", CONFIG, "--out", str(tmp_path)])
    assert f"--out: {tmp_path} exists; name a new folder" in capsys.readouterr().err
