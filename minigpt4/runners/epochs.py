"""The training loop: epochs of optimizer steps, a validation and a checkpoint after each."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from minigpt4.common.log import append_epoch, forget_epochs_after, train_line
from minigpt4.common.registry import runners
from minigpt4.common.types import Batch
from minigpt4.models.work import Work
from minigpt4.runners.checkpoints import BEST, LAST, epoch_file, save
from minigpt4.runners.finite import FiniteGuard, TrainingError, check_first_loss
from minigpt4.runners.interrupt import StopSignal
from minigpt4.runners.meters import EpochMeter, StepClock, StepRecord, StepWindow, peak_memory
from minigpt4.runners.parts import RunParts
from minigpt4.runners.resume import load_optimizer
from minigpt4.runners.state import TrainState, checkpoint_content
from minigpt4.runners.throughput import Throughput
from minigpt4.tasks import StepLoss

logger = logging.getLogger(__name__)
SHOWN_PICTURES = 5
"""Unreadable pictures that each process names; further ones are only counted."""


@runners.register("epochs")
class EpochRunner:
    """Trains epoch by epoch; between log points nothing waits for the device."""

    def __init__(self, parts: RunParts) -> None:
        self.parts = parts
        self.state = TrainState()
        self._window = StepWindow()
        self._clock = StepClock()
        self._guard = FiniteGuard(scaled=parts.updater.scaler.is_enabled())
        self._stop = StopSignal()
        self._work = parts.model.work_meter()
        self._done_since_line = Work()

    def resume(self, content: Mapping[str, Any], path: Path) -> None:
        """Put back what a checkpoint holds besides the weights.

        Raises:
            CheckpointError: Its optimizer is of other parameters.
        """
        parts = self.parts
        load_optimizer(parts.updater, content, path)
        self.state.restore(content, parts.processes, parts.run.seed)
        self._guard.in_a_row = self.state.skipped_in_a_row
        if parts.processes.is_main:
            forget_epochs_after(parts.folder / "log.txt", self.state.step)
        epoch, iteration = divmod(self.state.step, parts.plan.steps_per_epoch)
        logger.info("going on from %s: epoch %d, step %d of it", path, epoch, iteration)

    def run(self) -> TrainState:
        """Train to the end of the last epoch.

        Raises:
            TrainingError: Losses or gradients stayed non-finite.
            ProcessLostError: Another process ended or no longer answers.
            SystemExit: The run was told to stop, and has saved its state.
        """
        plan = self.parts.plan
        if self.state.step >= plan.total_steps:
            logger.info("all %d epochs are done already; raise run.max_epoch to train longer", plan.max_epoch)
            return self.state
        self.parts.trackers.start(self.state.step)
        with self._stop, logging_redirect_tqdm():
            batches = iter(self.parts.train_batches(self.state.step))
            while self.state.step < plan.total_steps:
                with self.parts.processes.watch(lambda: f"step {self.state.step}"):
                    self._train_epoch(batches)
                    self._end_epoch()
                if self.state.step < plan.total_steps and self._stop.agreed(0, self.parts.processes):
                    self._leave(self.parts.folder / epoch_file(self.state.step // plan.steps_per_epoch - 1))
        self.parts.trackers.finish()
        return self.state

    def _train_epoch(self, batches: Iterator[Batch]) -> None:
        """Steps up to the end of the epoch under way."""
        plan, run = self.parts.plan, self.parts.run
        epoch, done = divmod(self.state.step, plan.steps_per_epoch)
        self.parts.model.train()
        self._clock.start()
        hidden = not (self.parts.processes.is_main and sys.stderr.isatty())
        with tqdm(
            total=plan.steps_per_epoch, initial=done, desc=f"epoch {epoch}", unit="step", leave=False, disable=hidden
        ) as bar:
            for iteration in range(done, plan.steps_per_epoch):
                self._step(batches)
                bar.update()
                last = iteration == plan.steps_per_epoch - 1
                if last or iteration % run.log_freq == 0:
                    self._log(epoch, iteration)
                if last:
                    return
                if run.save_freq is not None and self.state.step % run.save_freq == 0:
                    self._save_in_mid_epoch(epoch)
                if self._stop.agreed(self.state.step, self.parts.processes):
                    self._leave(self._save_in_mid_epoch(epoch))

    def _step(self, batches: Iterator[Batch]) -> None:
        """One optimizer step; its numbers stay on the device."""
        parts = self.parts
        waiting = time.perf_counter()
        micro_batches = list(islice(batches, parts.plan.accumulation))
        self._clock.waited(time.perf_counter() - waiting)
        for batch in micro_batches:
            self._count_skipped(batch.skipped)
        loss = self._gradients(micro_batches)
        norm, skipped = parts.updater.step(parts.schedule(self.state.step))
        names = [name for batch in micro_batches for name in batch.image_ids]
        self._window.add(self.state.step, loss, norm, skipped, names, self._work.of_all(micro_batches))
        self.state.step += 1

    def _gradients(self, micro_batches: list[Batch]) -> StepLoss:
        parts = self.parts
        scaler = parts.updater.scaler
        try:
            return parts.task.train_step(parts.model, micro_batches, parts.shared, parts.processes, scaler)
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                f"step {self.state.step}: the GPU is out of memory ({str(error).splitlines()[0]}); lower "
                "datasets.NAME.batch_size and raise run.accum_grad_iters by the same factor (the result is the same), "
                "or set model.low_resource=8bit"
            ) from error

    def _count_skipped(self, messages: list[str]) -> None:
        for message in messages:
            self.state.meter.skipped_images += 1
            if self.state.meter.skipped_images <= SHOWN_PICTURES:
                logger.warning("another picture takes the place of one that cannot be read: %s", message)

    def _flush(self) -> list[StepRecord]:
        """Bring the steps since the last time to the host; the only wait for the device."""
        records, work = self._window.flush(self.parts.processes)
        self.state.meter.seconds += self._clock.stop(len(records))
        self.state.meter.add(records, work)
        self._done_since_line += work
        if records and records[0].step == 0 and self.parts.processes.is_main:
            check_first_loss(records[0].loss, self.parts.model.encoder.tokenizer.vocab_size)
        self._guard.check(records, self.parts.processes)
        self.state.skipped_in_a_row = self._guard.in_a_row
        return records

    def _log(self, epoch: int, iteration: int) -> None:
        """A log point: the line, and the trackers."""
        parts, meter = self.parts, self.state.meter
        latest = self._flush()[-1]
        steps, seconds, data_seconds = self._clock.lap()
        speed = Throughput.of(self._done_since_line, steps * seconds, parts.peak)
        self._done_since_line = Work()
        left = parts.plan.steps_per_epoch - 1 - iteration
        lr = parts.schedule(latest.step)
        line = train_line(
            epoch=epoch,
            iteration=iteration,
            iterations=parts.plan.steps_per_epoch,
            eta=left * meter.seconds / max(1, meter.steps),
            lr=lr,
            loss=latest.loss,
            seconds=seconds,
            data_seconds=data_seconds,
            max_mem=peak_memory(parts.processes.device),
        )
        logger.info("%s", line)
        logger.info("Speed: %s", speed)
        values = {"loss": latest.loss, "lr": lr, "grad_norm": latest.grad_norm, "time": seconds, "data": data_seconds}
        parts.trackers.log({f"train/{name}": v for name, v in (values | asdict(speed)).items()}, latest.step)

    def _end_epoch(self) -> None:
        """Validate, write log.txt and the checkpoints."""
        parts, state = self.parts, self.state
        epoch = state.step // parts.plan.steps_per_epoch - 1
        val_loss = self._validate(epoch)
        best = state.is_best(val_loss, epoch)
        values = {
            "epoch": epoch,
            "step": state.step,
            "train_lr": parts.schedule(state.step - 1),
            "train_loss": state.meter.loss,
            "val_loss": val_loss,
            "samples_seen": state.step * parts.plan.global_batch,
            "seconds": round(state.meter.seconds, 3),
            **asdict(Throughput.of(state.meter.work, state.meter.seconds, parts.peak)),
            "skipped_images": sum(parts.processes.gather(state.meter.skipped_images)),
            "skipped_steps": state.meter.skipped_steps,
        }
        state.meter = EpochMeter()
        content = checkpoint_content(parts, state, epoch, val_loss)
        if not parts.processes.is_main:
            return
        # Before the checkpoint: a kill in between leaves a line that the resumed run writes anew, not a gap.
        append_epoch(parts.folder / "log.txt", values)
        path = save(parts.folder, epoch_file(epoch), content)
        if best:
            save(parts.folder, BEST, content)
        logger.info("epoch %d: %s, saved to %s%s", epoch, _summary(values), path, " (best so far)" if best else "")
        parts.trackers.log({f"epoch/{k}": float(v) for k, v in values.items() if v is not None}, state.step)

    def _validate(self, epoch: int) -> float | None:
        """Loss on the validation split, without DDP's wrappers; None: there is none."""
        parts = self.parts
        if parts.valid_batches is None:
            return None
        hidden = not (parts.processes.is_main and sys.stderr.isatty())
        with parts.shared.unwrapped():
            batches = tqdm(parts.valid_batches, desc=f"validation {epoch}", unit="batch", leave=False, disable=hidden)
            return parts.task.validate(parts.model, batches, parts.processes).loss

    def _save_in_mid_epoch(self, epoch: int) -> Path:
        self._flush()
        content = checkpoint_content(self.parts, self.state, epoch)
        if self.parts.processes.is_main:
            save(self.parts.folder, LAST, content)
        return self.parts.folder / LAST

    def _leave(self, path: Path) -> None:
        if self.parts.processes.is_main:
            logger.warning(
                "told to stop: step %d is saved in %s; go on with --options run.resume_ckpt_path=%s",
                self.state.step,
                path,
                path,
            )
        self.parts.trackers.finish()
        raise SystemExit(self._stop.exit_code)


def _summary(values: Mapping[str, Any]) -> str:
    names = ("train_loss", "val_loss")
    return ", ".join(f"{name} {values[name]:.4f}" for name in names if values[name] is not None)
