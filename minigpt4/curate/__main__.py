"""Make stage 2's data, step by step."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from minigpt4.common.cli import add_config_arguments, console, exit_on_error, read_config, require_files, run_files
from minigpt4.common.logging import set_up_logging
from minigpt4.common.schema import Config
from minigpt4.curate.ledger import Ledger, Tally, read_events, sample_states

STEPS = {
    "describe": "draw images and describe them with the stage-1 model",
    "refine": "correct the descriptions",
    "filter": "reject by rules",
    "review": "accept, edit or reject on a page of this machine",
    "export": "write the folder that the card cc_sbu_align reads",
    "status": "count the samples in each state",
}


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    steps = "; ".join(f"{name}: {what}" for name, what in STEPS.items())
    parser = argparse.ArgumentParser(prog="minigpt4 curate", description=__doc__, epilog=steps)
    parser.add_argument("step", choices=list(STEPS))
    add_config_arguments(parser)
    parser.add_argument("--accept-all", action="store_true", help="review: accept all that the rules kept, and stop")
    return parser


def run(step: str, cfg: Config, accept_all: bool = False, given: Sequence[str] = ()) -> list[str]:
    """Do one step.

    Args:
        step: one of `STEPS`.
        cfg: configuration.
        accept_all: in `review`, accept everything that the rules kept, without a page.
        given: arguments that name the configuration, for the page to say what to type next.

    Returns:
        Lines for the console; the last one counts the samples in each state.

    Raises:
        MiniGPT4Error: Something that the user can fix.
    """
    curation = cfg.curation
    path, images = Path(curation.dir) / "ledger.jsonl", Path(curation.dir) / "image"
    if step == "status":  # also while another command has the ledger open
        return [str(Tally.of(sample_states(read_events(path))))]
    lines: list[str] = []
    with Ledger(path) as ledger:
        if step == "describe":
            from minigpt4.curate.describe import describe

            describe(cfg, ledger, images)
        elif step == "refine":
            from minigpt4.curate.refine import bill, refine

            usage = refine(curation.refine, ledger, model=cfg.model, seed=curation.seed, device=cfg.run.device)
            costs = bill(usage, curation.refine.price_in, curation.refine.price_out)
            lines.append("this run: " + ", ".join(f"{key} {value:,}" for key, value in costs.items()))
        elif step == "filter":
            from minigpt4.curate.filter import apply_rules

            counts = apply_rules(curation.filter, ledger)
            lines.append(", ".join(f"{rule} {number:,}" for rule, number in counts.items()) or "no change")
        elif step == "review":
            if accept_all:
                from minigpt4.curate.review import accept_rest

                lines.append(f"accepted {accept_rest(ledger):,}")
            else:
                from minigpt4.curate.review_server import serve

                serve(curation.port, ledger, images, given)
                lines.append("ended; every decision is saved")
        else:
            from minigpt4.curate.export import export

            out = Path(curation.export_dir)
            lines.append(f"wrote {out}: {export(ledger.states(), images, out):,} images with captions")
        return [*lines, str(Tally.of(ledger.states()))]


@exit_on_error()
def main(arguments: Sequence[str] | None = None) -> None:
    """Do one step, and print how many samples are in each state."""
    args = build_parser().parse_args(arguments)
    loaded = read_config(args)
    if args.step == "describe":
        require_files(run_files(loaded.config.model, loaded.config.datasets))
    out = console()
    set_up_logging()
    given = ["--cfg-path", args.cfg_path, *(["--options", *args.options] if args.options else [])]
    for line in run(args.step, loaded.config, args.accept_all, given):
        out.print(f"{args.step}: {line}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
