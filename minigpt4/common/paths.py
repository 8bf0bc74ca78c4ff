"""Where the project's own files lie, and checks of the user's paths."""

from __future__ import annotations

from pathlib import Path

from minigpt4.common.errors import ConfigError

PACKAGE = Path(__file__).resolve().parent.parent
PROJECT = PACKAGE.parent
CONFIGS = PACKAGE / "configs"


def project_file(relative: str) -> str:
    """A file of the checkout (`${project:prompts/alignment.txt}` in YAML)."""
    return str(PROJECT / relative)


def asset(relative: str) -> str:
    """A file shipped inside the package (`${asset:tiny/llama}` in YAML)."""
    return str(PACKAGE / "assets" / relative)


def existing(path: str | None, key: str, variable: str | None = None, folder: bool = False) -> Path:
    """`path`, checked.

    Args:
        path: The configured value.
        key: Its key in the configuration, for the message.
        variable: Environment variable that moves the root it lies under.
        folder: A folder is expected, not a file.

    Raises:
        ConfigError: It is not set or does not exist; the message names the key and the variable.
    """
    what = "folder" if folder else "file"
    if not path:
        raise ConfigError(f"{key} is not set; give the {what}'s path in your YAML or by --options {key}=PATH")
    found = Path(path)
    if found.is_dir() if folder else found.is_file():
        return found
    root = f", or set the environment variable {variable} to the folder that holds it" if variable else ""
    kind = f" ({'a file' if folder else 'a folder'} of that name exists)" if found.exists() else ""
    raise ConfigError(f"{key}: {what} {found} does not exist{kind}; set it by --options {key}=PATH{root}")
