"""Exports on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from minigpt4.common.errors import ExportError, counted, one_line

ALWAYS_THERE = (".gitattributes",)
"""Files that the hub puts into a new repository."""


def check_hub_name(name: str) -> None:
    """Refuse, before anything is computed, a name that nothing can be uploaded to.

    Args:
        name: OWNER/NAME, or NAME for a repository of one's own.

    Raises:
        ExportError: The name is not valid, no login was found, the hub does not answer, or the repository already has
            files.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ExportError(f"--push-to-hub: {one_line(error)}; write OWNER/NAME") from error
    api = HfApi()
    try:
        owner = api.whoami()["name"]
        full = name if "/" in name else f"{owner}/{name}"
        files = api.list_repo_files(full) if api.repo_exists(full) else []
    except Exception as error:  # what the network raises has many types
        raise ExportError(
            f"--push-to-hub: the hub does not let anybody in ({one_line(error, 150)}); run: hf auth login"
        ) from error
    if own := [file for file in files if file not in ALWAYS_THERE]:
        raise ExportError(
            f"--push-to-hub: {full} holds {counted(len(own), 'files')} already, such as {own[0]}; name a "
            "new repository: files of two models in one would be loaded together"
        )


def push(folder: Path, name: str, *, private: bool) -> str:
    """Upload a finished export.

    Args:
        folder: the export.
        name: name of the repository, which is made if it does not exist.
        private: whether a new repository is private.

    Returns:
        Its address.

    Raises:
        ExportError: It failed; the folder is complete.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        made = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message="A verified export")
    except Exception as error:
        raise ExportError(
            f"--push-to-hub: the upload failed ({one_line(error, 150)}); {folder} is complete, and "
            f"hf upload {name} {folder} resumes the upload"
        ) from error
    return str(made)
