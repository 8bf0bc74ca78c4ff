"""A chat page about images, on this machine, or with a password for others."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from minigpt4.common.cli import add_config_arguments, exit_on_error, read_config, require_files, run_files
from minigpt4.common.errors import ConfigError
from minigpt4.common.listening import check_address
from minigpt4.common.logging import announce_imports


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_config_arguments(parser, required=False)
    parser.add_argument(
        "--ckpt", nargs="+", default=[], metavar="FILE", help="checkpoint with the projection; two: side by side"
    )
    parser.add_argument("--gpu-id", type=int, metavar="N", help="which GPU (default: the first, or the CPU)")
    parser.add_argument(
        "--port", type=int, metavar="N", help="port of the page (default: the first free one from 7860)"
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="NAME",
        help="name or address to listen on, 0.0.0.0 for all: other machines can then open the page, with the password "
        "in the environment variable MINIGPT4_PASSWORD (default: %(default)s, this machine only)",
    )
    parser.add_argument(
        "--share",
        action="store_true",
        help="also make a public link; who opens it is asked for the password in MINIGPT4_PASSWORD, too",
    )
    return parser.parse_args(arguments)


@exit_on_error()
def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_arguments(arguments)
    loaded = read_config(args)
    if len(args.ckpt) > 2:
        raise ConfigError(f"--ckpt: {len(args.ckpt)} checkpoints; give one, or two to compare")
    require_files(run_files(loaded.config.model, checkpoints=args.ckpt))
    announce_imports()
    from minigpt4.serve.engine import Engine
    from minigpt4.serve.models import load_models
    from minigpt4.serve.shared_model import SharedModel
    from minigpt4.web.page import build_page
    from minigpt4.web.server import password_for, serve

    password = password_for(args.host, args.share)
    check_address(args.host, args.port)
    models = load_models(loaded.config, args.ckpt, args.gpu_id)
    labels = [str(Path(*Path(path).parts[-2:])) for path in args.ckpt] or [Path(str(loaded.config.model.ckpt)).name]
    with Engine(models, loaded.config.serving) as engine:
        shared = [SharedModel(model, engine) for model in models]
        page = build_page(shared, labels, visitors=max(1, engine.rows // len(models)))
        serve(page, args.port, host=args.host, password=password, share=args.share)


if __name__ == "__main__":
    main()
