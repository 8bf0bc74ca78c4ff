"""What a dry run shows: parameters, a sample with what is learnt of it, the planned steps."""

from __future__ import annotations

from collections.abc import Callable

from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from torch import nn

from minigpt4.common.schema import RunConfig
from minigpt4.common.types import Sample
from minigpt4.conversation.encoding import PromptEncoder
from minigpt4.runners.plan import Plan

LEARNT = ("[[", "]]")
"""Stand around learnt text, so that it can be told apart without colours."""


def parameter_table(model: nn.Module) -> Table:
    """A row for each part of the model and number format."""
    table = Table("module", "parameters", "trainable", "dtype", "MiB", title="Parameters", title_justify="left")
    totals = [0.0, 0.0, 0.0]
    for name, child in model.named_children():
        rows: dict[str, list[float]] = {}
        for parameter in child.parameters():
            row = rows.setdefault(str(parameter.dtype).removeprefix("torch."), [0.0, 0.0, 0.0])
            row[0] += parameter.numel()
            row[1] += parameter.numel() if parameter.requires_grad else 0
            row[2] += parameter.numel() * parameter.element_size() / 2**20
        for dtype, row in rows.items():
            table.add_row(name, f"{row[0]:,.0f}", f"{row[1]:,.0f}", dtype, f"{row[2]:,.1f}")
            totals = [total + part for total, part in zip(totals, row, strict=True)]
    table.add_section()
    table.add_row("total", f"{totals[0]:,.0f}", f"{totals[1]:,.0f}", "", f"{totals[2]:,.1f}")
    for column in (1, 2, 4):
        table.columns[column].justify = "right"
    return table


def sample_panel(sample: Sample, encoder: PromptEncoder) -> Panel:
    """The sample as the language model reads it; learnt text is green and stands in double brackets."""
    text = Text()
    for part, learnt in encoder.show(sample.encoded):
        text.append(LEARNT[0] + part + LEARNT[1] if learnt else part, style="bold green" if learnt else "")
    ids = sample.encoded
    footer = f"{len(ids.input_ids)} tokens, {ids.num_targets} learnt: those in {LEARNT[0]} {LEARNT[1]}"
    return Panel(text, title=f"Sample {sample.image_id}", title_align="left", subtitle=footer, subtitle_align="left")


def plan_table(plan: Plan, run: RunConfig, schedule: Callable[[int], float], counts: dict[str, int]) -> Table:
    """What the run would do.

    Args:
        plan: Its sizes.
        run: Its configuration.
        schedule: Global optimizer step -> learning rate.
        counts: Name -> number of samples, for training and for validation.
    """
    rates = [schedule(step) for step in range(plan.total_steps)]
    peak = max(range(plan.total_steps), key=rates.__getitem__)
    parts = f"{plan.batch_size} a micro-batch x {plan.accumulation} accumulated x {plan.world_size} processes"
    seen = plan.total_steps * plan.global_batch
    table = Table("plan", "", title="Planned steps", title_justify="left")
    for name, count in counts.items():
        table.add_row(name, f"{count:,} samples")
    table.add_row("epochs", f"{plan.max_epoch}")
    table.add_row("steps per epoch", f"{plan.steps_per_epoch:,}")
    table.add_row("steps", f"{plan.total_steps:,}")
    table.add_row("global batch", f"{plan.global_batch} ({parts})")
    table.add_row("samples seen", f"{seen:,} ({seen / max(1, counts.get('train', 0)):.2f} x the training data)")
    table.add_row("warm-up", f"{run.warmup_steps:,} steps")
    table.add_row("learning rate", f"{rates[0]:.3g} at step 0, {rates[peak]:.3g} at {peak}, {rates[-1]:.3g} at the end")
    return table
