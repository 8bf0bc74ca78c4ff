"""Make stage 2's data: `python -m minigpt4.curate describe|refine|filter|review|export --cfg-path X`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from minigpt4.common.cli import add_config_arguments, console, exit_on_error, read_config
from minigpt4.common.logging import set_up_logging
from minigpt4.common.schema import Config
from minigpt4.curate.ledger import Ledger, Tally, cases_of, price, read_events

STEPS = {
    "describe": "draw pictures and describe them with the stage-1 model",
    "refine": "correct the descriptions",
    "filter": "reject by rules",
    "review": "accept, edit or reject on a page of this machine",
    "export": "write the folder that the card cc_sbu_align reads",
    "status": "say how many samples stand where",
}


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    steps = "; ".join(f"{name}: {what}" for name, what in STEPS.items())
    parser = argparse.ArgumentParser(prog="python -m minigpt4.curate", description=__doc__, epilog=steps)
    parser.add_argument("step", choices=list(STEPS))
    add_config_arguments(parser)
    parser.add_argument("--accept-all", action="store_true", help="review: accept all that the rules kept, and stop")
    return parser


def run(step: str, cfg: Config, accept_all: bool = False) -> list[str]:
    """Do one step; what to say about it afterwards.

    Args:
        step: One of `STEPS`.
        cfg: The configuration.
        accept_all: In `review`: nobody looks, everything is accepted that the rules kept.

    Raises:
        MiniGPT4Error: Something that the user can mend.
    """
    folder = Path(cfg.curation.dir)
    pictures, said = folder / "image", list[str]()
    if step == "status":
        return [str(Tally.of(cases_of(read_events(folder / "ledger.jsonl"))))]
    with Ledger(folder / "ledger.jsonl") as ledger:
        if step == "describe":
            from minigpt4.curate.describe import describe

            describe(cfg, ledger, pictures)
        elif step == "refine":
            from minigpt4.curate.refine import refine

            bill = price(refine(cfg, ledger), cfg.curation.refine.price_in, cfg.curation.refine.price_out)
            said.append("this run: " + ", ".join(f"{key} {value:,}" for key, value in bill.items()))
        elif step == "filter":
            from minigpt4.curate.filter import apply_rules

            said.append(
                ", ".join(f"{rule} {number:,}" for rule, number in apply_rules(cfg, ledger).items()) or "no change"
            )
        elif step == "review":
            from minigpt4.curate.review import accept_rest, serve

            said.append(f"accepted {accept_rest(ledger):,}") if accept_all else serve(cfg, ledger, pictures)
        else:
            from minigpt4.curate.export import export

            out = Path(cfg.curation.export_dir)
            said.append(f"wrote {out}: {export(cases_of(ledger.events()), pictures, out):,} pictures with captions")
        return [*said, str(Tally.of(cases_of(ledger.events())))]


@exit_on_error()
def main(arguments: Sequence[str] | None = None) -> None:
    """Do one step, and say how many samples stand where."""
    args = build_parser().parse_args(arguments)
    loaded = read_config(args)
    out = console()
    set_up_logging()
    for line in run(args.step, loaded.config, args.accept_all):
        out.print(f"{args.step}: {line}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
