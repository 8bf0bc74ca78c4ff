"""Uploads, to a hub that answers from memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from minigpt4.common.errors import ExportError
from minigpt4.common.files import PROJECT
from minigpt4.export import __main__ as command
from minigpt4.export.hub import check_hub_name, push
from tests.runners.project import logging_restored


class Hub:
    """What the uploads use of `HfApi`."""

    files: dict[str, list[str]]
    calls: list[Any]
    broken: str

    def whoami(self) -> dict[str, str]:
        if self.broken == "login":
            raise OSError("no token")
        return {"name": "me"}

    def repo_exists(self, name: str) -> bool:
        return name in self.files

    def list_repo_files(self, name: str) -> list[str]:
        return self.files[name]

    def create_repo(self, name: str, **options: Any) -> Any:
        self.calls.append((name, options))

        class Made(str):
            repo_id = f"me/{name.rpartition('/')[2]}"

        return Made(f"hub/{Made.repo_id}")

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
        if self.broken == "upload":
            raise OSError("the line is dead")
        self.calls.append((repo_id, sorted(path.name for path in folder_path.iterdir())))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[Hub]:
    Hub.files = {"me/full": [".gitattributes", "config.json"], "me/empty": [".gitattributes"]}
    Hub.calls, Hub.broken = [], ""
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    return Hub


def test_names_are_checked_before_anything_is_computed(hub: type[Hub]) -> None:
    for name in ("me/new", "me/empty", "new"):
        check_hub_name(name)
    with pytest.raises(ExportError, match=r"me/full holds 1 file already, such as config\.json"):
        check_hub_name("full")
    with pytest.raises(ExportError, match="write OWNER/NAME"):
        check_hub_name("a/b/c")
    hub.broken = "login"
    with pytest.raises(ExportError, match=r"no token.*hf auth login"):
        check_hub_name("me/new")


def test_a_finished_folder_is_uploaded(
    hub: type[Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def export(cfg: Any, folder: Path, images: Any, metrics: Any) -> None:
        assert not hub.calls and len(images) == 4
        folder.mkdir()
        (folder / "config.json").touch()

    monkeypatch.setattr(command, "export", export)
    config = str(PROJECT / "eval_configs" / "quickstart.yaml")
    upload = ["--push-to-hub", "new", "--private"]
    with logging_restored():
        command.main(["--cfg-path", config, "--out", str(tmp_path / "out"), *upload])
    assert hub.calls == [("new", {"private": True, "exist_ok": True}), ("me/new", ["config.json"])]
    assert "uploaded to hub/me/new" in capsys.readouterr().out


def test_a_failed_upload_leaves_the_folder(hub: type[Hub], tmp_path: Path) -> None:
    hub.broken = "upload"
    with pytest.raises(ExportError, match=r"the line is dead.* is complete, and hf upload me/new"):
        push(tmp_path, "me/new", private=False)
