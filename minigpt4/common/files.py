"""Reading and writing files: atomic writes, JSON with errors that name the place, and the paths of shipped files."""

from __future__ import annotations

import difflib
import json
import math
import os
import re
import socket
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from minigpt4.common.errors import ConfigError, DataError

PACKAGE = Path(__file__).resolve().parent.parent
PROJECT = PACKAGE.parent
CONFIGS = PACKAGE / "configs"
DATA_VARIABLE = "MINIGPT4_DATA"
"""Environment variable that moves `paths.data_root`."""
WEIGHTS_VARIABLE = "MINIGPT4_WEIGHTS"
"""Environment variable that moves `paths.weights_root`."""
OUTPUT_VARIABLE = "MINIGPT4_OUTPUT"
"""Environment variable that moves `paths.output_root`."""
_VARIABLE_OF = {
    "annotations": DATA_VARIABLE,
    "images": DATA_VARIABLE,
    "llama_model": WEIGHTS_VARIABLE,
    "vit_weights": WEIGHTS_VARIABLE,
    "q_former_model": WEIGHTS_VARIABLE,
    "ckpt": WEIGHTS_VARIABLE,
}
MAX_NAMES = 2000
"""Names of a folder that a misspelt one is compared with; it takes 50 microseconds each."""
TEMPORARY = ".tmp"
"""Ends the names of files that are being written."""
IMAGE_SUFFIXES = (".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""Files of a folder that count as images."""


def project_file(relative: str) -> str:
    """A file of the checkout (`${project:prompts/alignment.txt}` in YAML)."""
    return str(PROJECT / relative)


def asset(relative: str) -> str:
    """A file shipped inside the package (`${asset:tiny/llama}` in YAML)."""
    return str(PACKAGE / "assets" / relative)


def require_path(path: str | None, key: str, folder: bool = False) -> Path:
    """`path`, if it exists.

    Args:
        path: configured value.
        key: its key in the configuration, for messages.
        folder: expect a folder, not a file.

    Raises:
        ConfigError: It is not set or does not exist; the message names the key, the environment variable that moves the
            root it is under, and where the file comes from.
    """
    what = "folder" if folder else "file"
    if not path:
        raise ConfigError(f"{key} is not set; give the {what}'s path in your YAML or by --options {key}=PATH")
    found = Path(path)
    if os.path.isdir(found) if folder else os.path.isfile(found):  # unlike Path's, they answer for any name
        return found
    if os.path.exists(found):
        other = "a file" if folder else "a folder"
        raise ConfigError(f"{key}: {what} {found} does not exist ({other} of that name does)")
    from minigpt4.common.sources import describe_missing  # read only where something is missing

    raise ConfigError(describe_missing(key, path))


def language_model_folder(path: str | None, key: str, *, weights: bool = True) -> Path:
    """The folder of a language model; a model of the Hugging Face hub, named OWNER/NAME, is downloaded first.

    Args:
        path: configured value.
        key: its key in the configuration, for messages.
        weights: whether a model of the hub is wanted with its weights, or its configuration and tokenizer only.

    Raises:
        ConfigError: As for `require_path`, or it cannot be downloaded.
    """
    if path and not os.path.isdir(path):
        from minigpt4.common.sources import from_hub, is_hub_name

        if is_hub_name(path):
            return from_hub(path, key, weights=weights)
    return require_path(path, key, folder=True)


def missing_file(path: str, key: str) -> str:
    """A path that does not exist, for messages: what may have been meant, and how to name another.

    Args:
        path: the path.
        key: its key in the configuration, or the argument of the command line that names it.
    """
    where = "" if os.path.isabs(path) else f" (the current folder is {Path.cwd()})"
    if key.startswith("-"):
        return f"{key}: {path} does not exist{where}{near_path(path)}"
    variable = root_variable(path, key)
    root = f", or set the environment variable {variable} to the folder that holds it" if variable else ""
    return f"{key}: {path} does not exist{where}{near_path(path)}; set it by --options {key}=PATH{root}"


def root_variable(path: str, key: str) -> str | None:
    """The environment variable that moves the folder which a path is in, or should be; None: there is none.

    Args:
        path: the path.
        key: as for `missing_file`.
    """
    roots = {DATA_VARIABLE: "data", WEIGHTS_VARIABLE: "weights", OUTPUT_VARIABLE: "output"}
    under = [name for name, default in roots.items() if Path(path).is_relative_to(os.environ.get(name, default))]
    return under[0] if under else _VARIABLE_OF.get(key.rpartition(".")[2])


def near_path(path: str | Path, folders: Iterable[Path] = ()) -> str:
    """What may have been meant by a path that does not exist: "; did you mean ...?", or nothing.

    Args:
        path: the path; the first of its parts that does not exist is compared with its neighbours.
        folders: further folders that may hold a file of about its name.
    """
    wrong = Path(path)
    while not os.path.isdir(wrong.parent) and wrong.parent != wrong:
        wrong = wrong.parent
    rest = Path(path).relative_to(wrong)
    for folder, name in [(wrong.parent, wrong.name), *((folder, Path(path).name) for folder in folders)]:
        try:
            names = os.listdir(folder)
        except (OSError, ValueError):  # ValueError: a name that no file can have
            continue
        near = difflib.get_close_matches(name, names[:MAX_NAMES], n=1, cutoff=0.75)
        if near and folder == wrong.parent:
            return f"; did you mean '{folder / near[0] / rest}'?"
        if near:
            return f"; did you mean '{os.path.relpath(folder / near[0])}'?"
    return ""


def require_writable(folder: Path, key: str) -> None:
    """Refuse a folder that cannot be made or written into, without making it.

    Args:
        folder: folder that files will be written into; it need not exist yet.
        key: its key in the configuration, or its argument, for the message.

    Raises:
        ConfigError: The message names what is in the way: something else of that name, or a folder without permission.
    """
    existing = nearest_existing(folder)
    if not os.path.isdir(existing):
        reason = f"{existing} is no folder"
    elif not os.access(existing, os.W_OK | os.X_OK):
        reason = f"nothing may be written into {existing}"
    else:
        return
    raise ConfigError(f"{key}: the folder {folder} cannot be made or written to: {reason}; name another folder")


def nearest_existing(path: Path) -> Path:
    """The path, or the nearest folder above that exists."""
    path = path.absolute()
    while not os.path.lexists(path):  # unlike Path's, it answers for folders that may not be looked into
        path = path.parent
    return path


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then move it into place in one step.

    A kill at any moment leaves either the old file or the complete new one, and perhaps the temporary file, which
    `remove_temporary_files` deletes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=TEMPORARY)
    temporary = Path(name)
    try:
        lock(handle)
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
        os.close(handle)


def remove_temporary_files(folder: Path, name: str) -> None:
    """Delete the temporary files that killed writers left in a folder; those that are being written stay.

    Args:
        folder: folder that is written into; it need not exist.
        name: name of the written files, with wildcards.
    """
    for temporary in folder.glob(f".{name}.*{TEMPORARY}"):
        with suppress(FileNotFoundError), temporary.open("rb") as file:
            if lock(file.fileno()):
                temporary.unlink()


def lock(file: int) -> bool:
    """Lock an open file until it is closed; False: another process has locked it.

    A system or a disk without locks counts as locked: work there is better unprotected than impossible.

    Args:
        file: file descriptor.
    """
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):  # a system or a disk without locks
        pass
    return True


@contextmanager
def hold(file: Path, output: Path) -> Iterator[None]:
    """Keep other processes from writing to the same place; the folder is created if missing.

    The system frees the lock where this process is killed. Its file says which process holds it.

    Args:
        file: lock file.
        output: file or folder that is written, for messages.

    Raises:
        DataError: Another process holds it.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    while True:
        stream = file.open("a+", encoding="utf-8", errors="replace")
        if not lock(stream.fileno()):
            stream.seek(0)
            holder = stream.read()
            stream.close()
            raise DataError(
                f"another command{holder and f' ({holder})'} is writing to {output}; wait until it has ended, or "
                "choose another place"
            )
        # The one before may have deleted the file that was opened here, and another one made a new one.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(stream.fileno()), file.stat()):
                break
        stream.close()
    _held.add(stream)
    try:
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {socket.gethostname()}")
        stream.flush()
        yield
    finally:
        file.unlink(missing_ok=True)
        _held.discard(stream)
        stream.close()


_held: set[IO[str]] = set()
"""Lock files that `hold` has open in this process."""


def _close_held() -> None:
    """Give a forked child's copies back: a loader worker that outlives this process would keep the locks."""
    for stream in _held:
        stream.close()
    _held.clear()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_close_held)


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turn what goes wrong with the disk inside into an error that names what was being written.

    Args:
        path: file or folder that is written.

    Raises:
        DataError: The disk is full, the folder cannot be written, or the like.
    """
    try:
        yield
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror or error}") from error
    except Exception as error:
        from safetensors import SafetensorError  # how it reports a full disk

        if not isinstance(error, SafetensorError):
            raise
        raise DataError(f"{path} cannot be written: {error}") from error


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file atomically; a lone surrogate, which cannot be encoded, becomes a question mark."""
    write_atomically(path, lambda temporary: temporary.write_bytes(text.encode("utf-8", errors="replace")))


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file, with or without a byte order mark.

    Raises:
        DataError: The file does not exist, cannot be read or is not UTF-8.
    """
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path} does not exist{near_path(path)}") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(f"{path}, line {line}: not UTF-8 ({error.reason}); save the file as UTF-8") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def read_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """(number, line) of each line of a UTF-8 file that is not blank; errors as for `read_text`.

    A line ends as on Linux, Windows or old Macs; separators such as U+2028 may be part of a text.
    """
    lines = re.split("\r\n|\r|\n", read_text(path))
    return ((number, line) for number, line in enumerate(lines, 1) if line.strip())


def parse_json(text: str) -> Any:
    """The value that a text holds in JSON.

    Raises:
        DataError: It is broken, nested too deeply, or has a number of thousands of digits or an object with the same
            key twice.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique_keys)
    except _RepeatedKeyError as error:
        raise DataError(f"the key {error} comes twice in one object") from None
    except json.JSONDecodeError as error:
        raise DataError(f"broken JSON ({error.msg} at column {error.colno})") from error
    except RecursionError:
        raise DataError("the JSON is nested too deeply") from None
    except ValueError as error:
        raise DataError(f"the JSON cannot be read ({error})") from error


def read_json(path: str | Path) -> Any:
    """The content of a JSON file.

    Raises:
        DataError: The file cannot be read as UTF-8 text, is not JSON, or has an object with the same key twice, of
            which Python's reader would silently keep the last.
    """
    text = read_text(path)
    try:
        return parse_json(text)
    except DataError as error:
        place, hint, cause = "", "", error.__cause__
        if isinstance(cause, json.JSONDecodeError):
            place = f", line {cause.lineno}"
            hint = "; a file with one object a line should be called .jsonl" if cause.msg == "Extra data" else ""
        raise DataError(f"{path}{place}: {error}{hint}") from cause


def write_json(path: str | Path, content: Any) -> None:
    """Write `content` atomically; NaN and infinities, which JSON lacks, become null."""
    write_text(Path(path), json.dumps(_finite(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_appended(path: Path) -> Iterator[tuple[int, Any]]:
    """(line number, value) of a JSONL file that is only appended to; there is none where the file does not exist.

    Text behind the last line break was being written when its process was killed, and is ignored.

    Raises:
        DataError: The file cannot be read, or a complete line is not JSON.
    """
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}, line {number}: broken JSON; restore the file, or delete this line") from error


def replace_lone_surrogates(text: str) -> str:
    """`text` with surrogate pairs joined and lone surrogates replaced: JSON can hold them, UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


class _RepeatedKeyError(Exception):
    pass


def _unique_keys(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _RepeatedKeyError(repr(key))
        found[key] = value
    return found


def _finite(content: Any) -> Any:
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, dict):
        return {str(key): _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    return content


def new_folder(parent: Path) -> Path:
    """A new folder in `parent`, named by the time and shared with no other process."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    parent.mkdir(parents=True, exist_ok=True)
    for number in range(1, 1000):
        folder = parent / (stamp if number == 1 else f"{stamp}-{number}")
        try:
            folder.mkdir()  # fails where it exists, so that two runs started together never share one
        except FileExistsError:
            continue
        return folder
    raise ConfigError(f"no free run folder in {parent}")
