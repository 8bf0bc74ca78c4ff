"""What `minigpt4 plan` prints about a run."""

from __future__ import annotations

import re

import pytest

from minigpt4.plan import main
from minigpt4.runners.plan import CUDA_CONTEXT, PARTS, fit, smallest_card
from tests.runners.project import Project


def test_a_card_holds_its_memory_with_cuda() -> None:
    assert smallest_card(0) == 8
    assert smallest_card(int(23.2 * 2**30) - CUDA_CONTEXT) == 24
    assert smallest_card(int(23.4 * 2**30) - CUDA_CONTEXT) == 40
    assert fit(200 * 2**30) == "200.5 GiB: no common card"


def test_a_plan_needs_no_weights_and_counts_what_a_run_does(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project.folder)
    options = ["model.vit_weights=missing.pth", "model.ckpt=null", "run.accum_grad_iters=2", "run.max_epoch=3"]
    main(["--cfg-path", "config.yaml", "--options", *options])
    printed, messages = capsys.readouterr()
    assert "importing torch" in messages and "under 1 s at an assumed MFU" in printed
    rows = dict(re.findall(r"^[│┃] (.+?) +[│┃] +(.+?) +[│┃]", printed, flags=re.MULTILINE))
    assert rows["steps"] == "9 of 8 samples"
    tokens, each, longest = re.fullmatch(r"([\d,]+), (\d+) a sample, at most (\d+)", rows["tokens"]).groups()  # type: ignore[union-attr]
    assert int(tokens.replace(",", "")) == pytest.approx(72 * int(each), rel=0.02) and int(longest) > int(each)
    parts = [float(rows[name].replace(",", "")) for name in rows if name in PARTS.values()]
    assert len(parts) == len(PARTS) and sum(parts) == pytest.approx(float(rows["total"].replace(",", "")), abs=0.5)
    assert rows["disk: feature cache"].endswith("of 31 images")
    assert "LLM in 4 bit" in rows and "H100" in printed


@pytest.mark.parametrize("arguments", [["--processes", "0"], ["--mfu", "1.5"]])
def test_impossible_arguments_are_refused(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    monkeypatch.chdir(project.folder)
    with pytest.raises(SystemExit):
        main(["--cfg-path", "config.yaml", *arguments])
    assert f"error: {arguments[0]}: {arguments[1]} should be" in capsys.readouterr().err
