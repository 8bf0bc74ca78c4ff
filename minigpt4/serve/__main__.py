"""Answer questions about images over HTTP, for every client of OpenAI's chat completions.

Many requests are answered at once; with several checkpoints, a request names the one that answers.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from minigpt4.common.cli import add_config_arguments, console, exit_on_error, read_config, require_files, run_files
from minigpt4.common.errors import ConfigError, counted
from minigpt4.common.listening import LOCAL, KnownNamesOnly, check_address, is_local
from minigpt4.common.logging import announce_imports

if TYPE_CHECKING:
    from starlette.types import ASGIApp

PORT = 8000
MIN_KEY = 8
"""Shortest key in characters."""
SWITCH_SECONDS = 0.0005
"""Time for which another thread keeps the interpreter from the engine's, which needs it hundreds of times a step."""


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        prog="minigpt4 serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_arguments(parser, required=False)
    parser.add_argument(
        "--ckpt",
        nargs="+",
        default=[],
        metavar="FILE",
        help="checkpoints, each a model of its own (default: model.ckpt)",
    )
    parser.add_argument("--gpu-id", type=int, metavar="N", help="which GPU (default: the first, or the CPU)")
    parser.add_argument("--port", type=int, default=PORT, metavar="N", help="port (default: %(default)s)")
    parser.add_argument(
        "--host",
        default=LOCAL,
        metavar="NAME",
        help="name or address to listen on, 0.0.0.0 for all: other machines can then ask, with the key of "
        "--api-key-env (default: %(default)s, this machine only)",
    )
    parser.add_argument(
        "--api-key-env",
        metavar="NAME",
        help="environment variable with the key that requests must bring (default: none)",
    )
    parser.add_argument(
        "--allow-remote-images",
        nargs="*",
        metavar="HOST",
        help="fetch images that a request names by http(s): from these hosts, or with none from any public address "
        "(default: images come in requests, as data URLs)",
    )
    return parser


@exit_on_error()
def main(arguments: Sequence[str] | None = None) -> None:
    """Load the models, and serve them until a signal ends it."""
    args = build_parser().parse_args(arguments)
    cfg = read_config(args).config
    key = key_of(args.api_key_env)
    if key is None and not is_local(args.host):
        raise ConfigError(
            f"--host {args.host} lets other machines ask, which needs a key: put one of at least {MIN_KEY} characters "
            "into an environment variable, and name that by --api-key-env"
        )
    names = model_names(args.ckpt or [str(cfg.model.ckpt)])
    require_files(run_files(cfg.model, checkpoints=args.ckpt))
    check_address(args.host, args.port)
    announce_imports()
    from minigpt4.serve.app import create_app
    from minigpt4.serve.engine import Engine
    from minigpt4.serve.gate import refuse_foreign
    from minigpt4.serve.images import ImageSource
    from minigpt4.serve.models import load_models
    from minigpt4.serve.server import DrainingServer

    models = dict(zip(names, load_models(cfg, args.ckpt, args.gpu_id), strict=True))
    sys.setswitchinterval(SWITCH_SECONDS)
    images = ImageSource(args.allow_remote_images, int(cfg.serving.max_request_mb * 1e6))
    with Engine(list(models.values()), cfg.serving) as engine:
        gate = create_app(engine, models, cfg.serving, key=key, images=images)
        app: ASGIApp = gate if key is not None else KnownNamesOnly(gate, args.host, refuse_foreign)
        shown = f"[{args.host}]" if ":" in args.host else args.host
        ready = (
            f"{', '.join(names)} at http://{shown}:{args.port}/v1: {counted(engine.rows, 'answers')} at the same time, "
            f"of {engine.context:,} tokens each with the prompt (Ctrl-C ends it)"
            + "".join(f"\n{note}" for note in dict.fromkeys(model.note for model in models.values()) if note)
        )
        DrainingServer(
            app,
            gate,
            engine,
            cfg.serving.grace_seconds,
            (args.host, args.port),
            lambda: console().print(ready, markup=False, soft_wrap=True),
        ).run()


def key_of(variable: str | None) -> str | None:
    """The key in an environment variable, because a command line is visible to every user of a machine.

    Args:
        variable: its name; None: no key is needed.

    Raises:
        ConfigError: It is not set, too short, or holds what no header can.
    """
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if len(key) < MIN_KEY or not (key.isascii() and key.isprintable()):
        raise ConfigError(
            f"--api-key-env: {variable} should hold a key of at least {MIN_KEY} letters, digits and signs of ASCII; it "
            f"{f'has {len(key)} characters' if key else 'is not set'}"
        )
    return key


def model_names(checkpoints: Sequence[str]) -> list[str]:
    """Names of models by their checkpoints: as short as they can be told apart by.

    Args:
        checkpoints: paths of files.

    Raises:
        ConfigError: One is named twice.
    """
    paths = [Path(os.path.abspath(checkpoint)) for checkpoint in checkpoints]
    for length in range(1, max(len(path.parts) for path in paths) + 1):
        names = [str(Path(*path.with_suffix("").parts[-length:])) for path in paths]
        if len(set(names)) == len(names):
            return names
    twice = Counter(map(str, paths)).most_common(1)[0][0]
    raise ConfigError(f"--ckpt: {twice} is named twice; name each checkpoint once")


if __name__ == "__main__":
    main()
