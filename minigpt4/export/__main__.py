"""A trained model as a folder that transformers runs without this package: `minigpt4 export --cfg-path X --out FOLDER`.

Before it is done, the folder is loaded by transformers alone and compared with the model.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from minigpt4.common.cli import add_config_arguments, console, exit_on_error, read_config, require_files, run_files
from minigpt4.common.errors import ConfigError, DataError, ExportError, counted
from minigpt4.common.files import IMAGE_SUFFIXES, write_text
from minigpt4.common.logging import set_up_logging
from minigpt4.common.schema import Config, LowResource, ModelConfig, Precision
from minigpt4.export.folder import check_new, new_folder_of

if TYPE_CHECKING:
    from minigpt4.export.verify import Check

logger = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        prog="minigpt4 export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config_arguments(parser)
    parser.add_argument("--ckpt", metavar="FILE", help="checkpoint to export (default: model.ckpt)")
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="new folder")
    parser.add_argument(
        "--images", type=Path, metavar="PATH", help="image or folder to compare answers on (default: four drawn scenes)"
    )
    parser.add_argument("--metrics", type=Path, metavar="FILE", help="metrics.json with the checkpoint's scores")
    parser.add_argument("--no-verify", action="store_true", help="leave the comparison out; the model card says so")
    parser.add_argument("--push-to-hub", metavar="NAME", help="then upload the folder to this repository")
    parser.add_argument("--private", action="store_true", help="make a new repository of --push-to-hub private")
    parser.add_argument(
        "--language-model-only",
        action="store_true",
        help="only merge the adapters into a folder of the language model, for this package",
    )
    return parser


@exit_on_error()
def main(arguments: Sequence[str] | None = None) -> None:
    """Export, verify, and print what was compared."""
    args = build_parser().parse_args(arguments)
    cfg = read_config(args, [f"model.ckpt={args.ckpt}"] if args.ckpt else []).config
    check_arguments(args, cfg.model)
    set_up_logging()
    say = console()
    if args.language_model_only:
        from minigpt4.export.language_model import merge_language_model

        load = merge_language_model(cfg.model, args.out)
        say.print(f"wrote {args.out}; to use it: --options {load}", markup=False, soft_wrap=True)
        return
    images = [] if args.no_verify else compared_images(args.images)
    if args.push_to_hub:
        from minigpt4.export.hub import check_hub_name

        check_hub_name(args.push_to_hub)
    export(cfg, args.out, images, args.metrics)
    say.print(f"wrote {args.out}", markup=False, soft_wrap=True)
    if args.push_to_hub:
        from minigpt4.export.hub import push

        say.print(f"uploaded to {push(args.out, args.push_to_hub, private=args.private)}", markup=False, soft_wrap=True)


def check_arguments(args: argparse.Namespace, model: ModelConfig) -> None:
    """Refuse, before anything is loaded, what cannot be exported.

    Raises:
        MiniGPT4Error: The message names the argument or setting.
    """
    if args.private and not args.push_to_hub:
        raise ConfigError("--private: it belongs to --push-to-hub NAME, which is not given")
    if args.push_to_hub and args.no_verify:
        raise ConfigError("--push-to-hub uploads what was verified; leave --no-verify out, or upload by hand")
    if args.images and args.no_verify:
        raise ConfigError("--images: nothing is compared with --no-verify; leave one of them out")
    if args.language_model_only:
        others = {"--images": args.images, "--metrics": args.metrics, "--no-verify": args.no_verify}
        others["--push-to-hub"] = args.push_to_hub
        if given := [name for name, value in others.items() if value]:
            raise ConfigError(f"--language-model-only merges adapters and does nothing else; leave {given[0]} out")
    if model.ckpt is None:
        raise ConfigError("no checkpoint: an untrained projection says nothing; name it by --ckpt FILE or model.ckpt")
    if model.low_resource is not LowResource.off:
        raise ConfigError(
            f"model.low_resource: {model.low_resource.value} weights are not exported, nor adapters merged into them; "
            "set it to off: an exported folder can be quantised when it is loaded"
        )
    check_new(args.out)
    if not args.language_model_only:
        from minigpt4.export.fit import check_exportable

        check_exportable(model)
    require_files(run_files(model))


def compared_images(path: Path | None) -> list[Path]:
    """The images that answers are compared on.

    Args:
        path: an image, or a folder of them; None: those that ship with the package.

    Raises:
        DataError: There is none.
    """
    if path is None:
        from minigpt4.export.verify import EXAMPLES

        return list(EXAMPLES)
    if path.is_file():
        return [path]
    found = sorted(file for file in path.glob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise DataError(f"--images: {path} is no image and no folder of images ({', '.join(IMAGE_SUFFIXES)})")
    return found


def export(cfg: Config, folder: Path, images: Sequence[Path], metrics: Path | None = None) -> None:
    """Write the folder, compare it with the model and print the table; the folder appears if all agrees.

    Args:
        cfg: configuration with a checkpoint.
        folder: new folder.
        images: images to compare answers on; none: nothing is compared, and the model card says so.
        metrics: scores for the model card; None: those near the checkpoint, if any.

    Raises:
        ExportError: The model is none that transformers has, or the export differs from it.
        MiniGPT4Error: Other files or settings that cannot be used.
    """
    from minigpt4.common.checkpoint import read_projection
    from minigpt4.export.card import CARD, find_scores, model_card
    from minigpt4.export.model_folder import write_model

    checkpoint = Path(str(cfg.model.ckpt))
    scores = find_scores(checkpoint, metrics)
    with new_folder_of(folder) as unfinished:
        logger.info("writing the weights")
        written = write_model(cfg.model, cfg.evaluation.generation, unfinished)
        checks = None
        if images:
            from minigpt4.api import from_config
            from minigpt4.export.verify import verify

            logger.info("comparing the answers about %s", counted(len(images), "images"))
            precision = "float32" if cfg.model.precision is Precision.auto else "auto"
            checks = verify(partial(from_config, cfg, precision=precision), unfinished, images, written)
            show(checks)
        write_text(unfinished / CARD, model_card(cfg.model, written, read_projection(checkpoint)[1], scores, checks))
    if written.leaves_end:
        console().print(
            f"Answers end with {written.end!r}, which is text and no token: programs that stop at tokens only leave it "
            f"in an answer ({CARD} says what to do). A new recipe should end with a token (model.end_sym: </s>, or "
            "model.template: chat).",
            markup=False,
            soft_wrap=True,
        )


def show(checks: Sequence[Check]) -> None:
    """Print the comparison.

    Raises:
        ExportError: Something differs by more than is allowed.
    """
    from rich.table import Table

    table = Table("compared", "found", "allowed", title="The export beside the model", title_justify="left")
    for each in checks:
        table.add_row(each.what, each.found if each.passed else f"DIFFERS: {each.found}", each.allowed)
    console().print(table)
    if wrong := [f"{each.what} ({each.found}, allowed: {each.allowed})" for each in checks if not each.passed]:
        raise ExportError(
            f"the export differs from the model: {'; '.join(wrong)}; nothing was kept. --no-verify writes it all the "
            "same, for a look at it"
        )


if __name__ == "__main__":
    main()
