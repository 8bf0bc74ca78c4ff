"""The training loop: steps, logging, validation, checkpoints, resume, non-finite values and the stop signal."""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from random import Random
from types import FrameType, TracebackType
from typing import Any

import torch

from minigpt4.common.distributed import GradientSum, Processes
from minigpt4.common.errors import MiniGPT4Error, first_few
from minigpt4.common.logging import Progress, read_epochs, train_line
from minigpt4.common.registry import runners
from minigpt4.common.schema import RunConfig
from minigpt4.common.types import Batch
from minigpt4.datasets.sampler import micro_batch_numbers
from minigpt4.models.flops import Work
from minigpt4.runners.checkpoints import (
    LAST,
    epoch_file,
    read_resumable,
    restore_derived_files,
    save,
    save_epoch,
)
from minigpt4.runners.metrics import (
    EpochMeter,
    PeakFlops,
    RunTiming,
    StepClock,
    StepRecord,
    StepWindow,
    Throughput,
    Trackers,
    peak_memory,
)
from minigpt4.runners.optim import OptimizerStep, Plan
from minigpt4.runners.run_folder import LOG
from minigpt4.tasks.training import Task

logger = logging.getLogger(__name__)

STOP_CHECK_STEPS = 5
"""Optimizer steps between two checks whether any rank was told to stop."""
MAX_SKIPPED = 5
"""Skipped steps in a row that end the run."""
MAX_SKIPPED_SCALED = 20
"""The same with a loss scale, which needs up to 16 of them to find its level."""
SHOWN_SAMPLES = 8
"""Samples of a skipped step that are named."""
SHOWN_IMAGES = 5
"""Unreadable images that each rank names; further ones are only counted."""


class TrainingError(MiniGPT4Error):
    """Training cannot continue."""


@runners.register("epochs")
class Trainer:
    """Trains epoch by epoch; between log points nothing waits for the device.

    Args:
        run: section `run` of the configuration.
        plan: steps and batch sizes of the run.
        processes: ranks of the run.
        model: model with `trainable_state`, `metadata`, `encoder` and `work_meter`.
        gradients: adds the gradients of all micro-batches of a step.
        task: defines the loss of a step and of a validation.
        optimizer: optimizer, loss scale and clipping.
        schedule: global optimizer step -> learning rate.
        train_batches: first optimizer step -> micro-batches of this rank from there to the end of the run.
        valid_batches: validation batches of this rank; None: no validation.
        folder: run folder.
        identity: entries of every checkpoint that say what run it belongs to (`run_identity`).
        metadata: entries of every checkpoint's metadata that say what it is trained on.
        trackers: trackers that the curves are sent to.
        peak: FLOP/s that the devices of all ranks can reach together.
    """

    def __init__(
        self,
        *,
        run: RunConfig,
        plan: Plan,
        processes: Processes,
        model: Any,
        gradients: GradientSum,
        task: Task,
        optimizer: OptimizerStep,
        schedule: Callable[[int], float],
        train_batches: Callable[[int], Iterable[Batch]],
        valid_batches: Collection[Batch] | None,
        folder: Path,
        identity: Mapping[str, Any],
        metadata: Mapping[str, str],
        trackers: Trackers,
        peak: PeakFlops,
    ) -> None:
        self.run = run
        self.plan = plan
        self.processes = processes
        self.model = model
        self.gradients = gradients
        self.task = task
        self.optimizer = optimizer
        self.schedule = schedule
        self.train_batches = train_batches
        self.valid_batches = valid_batches
        self.folder = folder
        self.identity = identity
        self.metadata = metadata
        self.trackers = trackers
        self.peak = peak
        self.state = TrainState()
        self._window = StepWindow()
        self._clock = StepClock()
        self._guard = FiniteGuard(scaled=optimizer.scaler.is_enabled())
        self._stop = StopSignal()
        self._work_meter = model.work_meter()
        self._work_since_line = Work()
        self._timing = RunTiming(plan.steps_per_epoch, plan.max_epoch)

    def resume(self, path: Path) -> None:
        """Restore everything but the weights from a checkpoint, and the files that follow from it.

        Raises:
            CheckpointError: The checkpoint cannot be read, or its optimizer state is of other parameters.
        """
        content = read_resumable(path)
        self.optimizer.restore(content, path)
        self.state.restore(content, self.processes)
        self._guard.in_a_row = self.state.skipped_in_a_row
        if self.processes.is_main:
            if "epochs" not in content["progress"]:  # an older checkpoint
                self.state.epochs = read_epochs(self.folder / LOG, self.state.step)
            restore_derived_files(path, content, self.state.epochs, self.run.keep_checkpoints)
        epoch, iteration = divmod(self.state.step, self.plan.steps_per_epoch)
        logger.info("resumed from %s: epoch %d, step %d of it", path, epoch, iteration)

    def train(self) -> float:
        """Train to the end of the last epoch.

        Returns:
            Seconds that it took.

        Raises:
            TrainingError: Losses or gradients stayed non-finite, the weights overflowed, or the GPU is out of memory.
            ProcessLostError: Another rank ended or no longer answers.
            SystemExit: The run was stopped by a signal, and its state is saved.
        """
        total_steps = self.plan.total_steps
        if self.state.step >= total_steps:
            logger.info("all %d epochs are done already; raise run.max_epoch to train longer", self.plan.max_epoch)
            return 0.0
        began = time.monotonic()
        self.trackers.start(self.state.step)
        with self._stop:
            batches = iter(self.train_batches(self.state.step))
            while self.state.step < total_steps:
                with self.processes.report_lost_ranks(lambda: f"step {self.state.step}"):
                    self._train_epoch(batches)
                    self._end_epoch()
                if self.state.step < total_steps and self._stop.agreed(0, self.processes):
                    self._exit(self.folder / epoch_file(self.state.step // self.plan.steps_per_epoch - 1))
        self.trackers.finish()
        return time.monotonic() - began

    def _train_epoch(self, batches: Iterator[Batch]) -> None:
        """Train to the end of the current epoch."""
        steps_per_epoch, run = self.plan.steps_per_epoch, self.run
        epoch, done = divmod(self.state.step, steps_per_epoch)
        self.model.train()
        self.peak.measure()
        self._clock.start()
        with Progress(f"epoch {epoch}", steps_per_epoch, "steps", done=done, lines=False) as progress:
            for iteration in range(done, steps_per_epoch):
                self._step(batches)
                progress.advance(note=self._timing.note(self.state.step))
                last = iteration == steps_per_epoch - 1
                if last or iteration == 0 or (iteration + 1) % run.log_freq == 0:
                    self._log(epoch, iteration + 1)
                if last:
                    return
                if run.save_freq is not None and self.state.step % run.save_freq == 0:
                    self._save_within_epoch(epoch)
                if self._stop.agreed(self.state.step, self.processes):
                    self._exit(self._save_within_epoch(epoch))

    def _step(self, batches: Iterator[Batch]) -> None:
        """One optimizer step; its numbers stay on the device."""
        start = time.perf_counter()
        micro_batches = list(islice(batches, self.plan.accumulation))
        self._clock.waited(time.perf_counter() - start)
        for message in (message for batch in micro_batches for message in batch.skipped):
            self.state.meter.skipped_images += 1
            if self.state.meter.skipped_images <= SHOWN_IMAGES:
                logger.warning("replaced an unreadable image: %s", message)
        try:
            loss = self.task.train_step(
                self.model, micro_batches, self._seeds(), self.gradients, self.processes, self.optimizer.scaler
            )
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                f"step {self.state.step}: the GPU is out of memory ({str(error).splitlines()[0]}); lower "
                "run.batch_size and raise run.accum_grad_iters by the same factor (the result is the same), "
                "or set model.low_resource=8bit"
            ) from error
        norm, skipped = self.optimizer.step(self.schedule(self.state.step))
        image_ids = [name for batch in micro_batches for name in batch.image_ids]
        work = self._work_meter.of_all(micro_batches)
        self._window.add(self.state.step, loss, norm, skipped, self.optimizer.finite(), image_ids, work)
        self.state.step += 1

    def _seeds(self) -> list[int]:
        """A seed for each micro-batch of this rank in the current step."""
        numbers = micro_batch_numbers(self.plan.accumulation, self.plan.world_size, self.processes.rank)
        return [Random(f"{self.run.seed}-step-{self.state.step}-{n}").getrandbits(63) for n in numbers]

    def _flush(self) -> list[StepRecord]:
        """Bring the steps since the last flush to the host; the only wait for the device."""
        records, work = self._window.flush(self.processes)
        self.state.meter.seconds += self._clock.stop(len(records))
        self.state.meter.add(records, work)
        self._work_since_line += work
        if records and records[0].step == 0 and self.processes.is_main:
            check_first_loss(records[0].loss, self.model.encoder.tokenizer.vocab_size, self.model.base)
        self._guard.check(records, self.processes)
        self.state.skipped_in_a_row = self._guard.in_a_row
        return records

    def _log(self, epoch: int, step: int) -> None:
        """Write the log line, and send its values to the trackers.

        Args:
            epoch: current epoch.
            step: optimizer steps done in it.
        """
        latest = self._flush()[-1]
        steps, seconds, data_seconds = self._clock.lap()
        self._timing.count_steps(steps, seconds)
        speed = Throughput.of(self._work_since_line, steps * seconds, self.peak)
        self._work_since_line = Work()
        lr = self.schedule(latest.step)
        line = train_line(
            epoch=epoch,
            epochs=self.plan.max_epoch,
            step=step,
            steps=self.plan.steps_per_epoch,
            loss=latest.loss,
            lr=lr,
            samples_per_second=speed.samples_per_second,
            eta=self._timing.seconds_left(self.state.step),
            data_share=data_seconds / max(seconds, 1e-9),
        )
        logger.info("%s", line)
        values = {"loss": latest.loss, "lr": lr, "grad_norm": latest.grad_norm, "time": seconds, "data": data_seconds}
        self.trackers.log({f"train/{name}": v for name, v in (values | asdict(speed)).items()}, latest.step)

    def _end_epoch(self) -> None:
        """Validate, and write the checkpoints and log.txt."""
        state, began = self.state, time.monotonic()
        epoch = state.step // self.plan.steps_per_epoch - 1
        val_loss = self._validate()
        best = state.is_best(val_loss, epoch)
        speed = Throughput.of(state.meter.work, state.meter.seconds, self.peak)
        values = {
            "epoch": epoch,
            "step": state.step,
            "train_lr": self.schedule(state.step - 1),
            "train_loss": state.meter.loss,
            "val_loss": val_loss,
            "samples_seen": state.step * self.plan.global_batch,
            "seconds": round(state.meter.seconds, 3),
            **asdict(speed),
            "max_memory_mib": round(peak_memory(self.processes.device)),
            "skipped_images": sum(self.processes.gather(state.meter.skipped_images)),
            "skipped_steps": state.meter.skipped_steps,
        }
        state.meter = EpochMeter()
        state.epochs.append(values)
        content = self._checkpoint(epoch, val_loss)
        if not self.processes.is_main:
            return
        path = save_epoch(self.folder, content, values, self.run.keep_checkpoints)
        losses = [f"{k.replace('_', ' ')} {values[k]:.4f}" for k in ("train_loss", "val_loss") if values[k] is not None]
        logger.info(
            "epoch %d: %s%s; %s; %.1f GiB at most; saved to %s",
            epoch,
            ", ".join(losses),
            " (best so far)" if best else "",
            speed,
            values["max_memory_mib"] / 2**10,
            path,
        )
        self.trackers.log({f"epoch/{k}": float(v) for k, v in values.items() if v is not None}, state.step)
        self._timing.count_epoch_end(time.monotonic() - began)

    def _validate(self) -> float | None:
        """Loss on the validation split; None: there is none."""
        if self.valid_batches is None:
            return None
        return self.task.validate(self.model, self.valid_batches, self.processes).loss

    def _save_within_epoch(self, epoch: int) -> Path:
        """Write checkpoint_last.pth; every rank must call it."""
        self._flush()
        content = self._checkpoint(epoch)
        if self.processes.is_main:
            save(self.folder, LAST, content)
        return self.folder / LAST

    def _checkpoint(self, epoch: int, val_loss: float | None = None) -> dict[str, Any]:
        """A checkpoint in the published layout, with the entries needed to resume; every rank must call it.

        Args:
            epoch: current epoch.
            val_loss: validation loss at its end.
        """
        weights = {name: tensor.clone() for name, tensor in self.model.trainable_state().items()}
        metadata = {**self.model.metadata(), **self.metadata, "epoch": str(epoch), "step": str(self.state.step)}
        if val_loss is not None:
            metadata["val_loss"] = repr(val_loss)
        return {
            "model": weights,
            **self.optimizer.state(),
            **self.identity,
            "epoch": epoch,
            "metadata": metadata,
            **self.state.content(self.processes),
        }

    def _exit(self, path: Path) -> None:
        """End the process after a stop signal; `path` is the checkpoint that was saved."""
        if self.processes.is_main:
            logger.warning(
                "stopped by signal at step %d, saved %s; resume with --options run.resume_ckpt_path=%s",
                self.state.step,
                path,
                path,
            )
        self.trackers.finish()
        raise SystemExit(self._stop.exit_code)


@dataclass(slots=True)
class TrainState:
    """The state of a run besides weights and optimizer.

    Attributes:
        step: optimizer steps done; schedule, sampler and random numbers depend on nothing else.
        best_val_loss: lowest validation loss so far; None: not measured yet.
        best_epoch: its epoch.
        skipped_in_a_row: updates skipped since the last one that was not, because gradients were not finite.
        meter: running sums of the current epoch.
        epochs: objects of log.txt, which is written from them where the run is resumed.
    """

    step: int = 0
    best_val_loss: float | None = None
    best_epoch: int | None = None
    skipped_in_a_row: int = 0
    meter: EpochMeter = field(default_factory=EpochMeter)
    epochs: list[dict[str, Any]] = field(default_factory=list)

    def is_best(self, val_loss: float | None, epoch: int) -> bool:
        """Whether this epoch is the best so far, which is then recorded; NaN never is."""
        if val_loss is None or math.isnan(val_loss):
            return False
        if self.best_val_loss is not None and val_loss >= self.best_val_loss:
            return False
        self.best_val_loss, self.best_epoch = val_loss, epoch
        return True

    def content(self, processes: Processes) -> dict[str, Any]:
        """The entries "step" and "progress" of a checkpoint; every rank must call it."""
        skipped_images = sum(processes.gather(self.meter.skipped_images))
        progress = {
            "best_val_loss": self.best_val_loss,
            "best_epoch": self.best_epoch,
            "skipped_in_a_row": self.skipped_in_a_row,
            "meter": self.meter.state_dict() | {"skipped_images": skipped_images},
            "epochs": list(self.epochs),
        }
        return {"step": self.step, "progress": progress}

    def restore(self, content: Mapping[str, Any], processes: Processes) -> None:
        """Restore the state from a checkpoint.

        Args:
            content: content of the checkpoint.
            processes: ranks of the run.
        """
        progress = content["progress"]
        self.step = content["step"]
        self.best_val_loss = progress["best_val_loss"]
        self.best_epoch = progress["best_epoch"]
        self.skipped_in_a_row = progress["skipped_in_a_row"]
        self.meter.load_state_dict(progress["meter"])
        self.epochs = list(progress.get("epochs", []))
        if not processes.is_main:
            self.meter.skipped_images = 0  # rank 0 carries the sum on


class FiniteGuard:
    """Reports skipped updates with their samples, and ends the run when they do not stop.

    The optimizer step has left the weights as they were. An update that was not skipped and overflowed the weights ends
    the run at once: every checkpoint is preceded by a check, so that it never holds such weights.

    Args:
        scaled: whether a loss scale is in use, which makes an occasional skipped step normal.
    """

    def __init__(self, scaled: bool) -> None:
        self.scaled = scaled
        self.in_a_row = 0

    def check(self, records: Sequence[StepRecord], processes: Processes) -> None:
        """Check the steps since the last log point; every rank must call it with the same steps.

        Raises:
            TrainingError: Too many steps in a row were skipped, or an update has overflowed; the message names the
                step, and the samples of skipped ones.
        """
        limit = MAX_SKIPPED_SCALED if self.scaled else MAX_SKIPPED
        for record in records:
            if not record.weights_finite:
                raise TrainingError(
                    f"step {record.step}: the trained weights or the optimizer's moments are not finite after the "
                    "update, and are not saved; lower run.init_lr, set run.max_grad_norm, or check model.ckpt, then "
                    "start again, or resume from an earlier checkpoint with run.resume_ckpt_path"
                )
            if not record.skipped and record.finite:
                self.in_a_row = 0
                continue
            self.in_a_row += 1
            if self.scaled and record.finite and self.in_a_row < limit:
                logger.info("step %d: gradients overflowed; loss scale lowered, update skipped", record.step)
                continue
            suspects = record.image_ids if record.bad_here or record.finite else []
            samples = [name for ids in processes.gather(suspects) for name in ids]
            message = (
                f"step {record.step}: the {'gradient' if record.finite else 'loss'} is not finite "
                f"(samples: {first_few(samples, SHOWN_SAMPLES)}); the update was skipped and the weights are unchanged."
            )
            if self.in_a_row >= limit:
                raise TrainingError(
                    f"{message} This is the {self.in_a_row}th step in a row; lower run.init_lr, set "
                    "model.precision=float32 or bfloat16, or check these samples, then resume with run.resume_ckpt_path"
                )
            if processes.is_main:
                logger.warning("%s", message)


def check_first_loss(loss: float, vocab_size: int, base: Mapping[str, str]) -> None:
    """Warn when the first loss is that of guessing, which a language model with its weights never shows.

    Args:
        loss: loss of the first step, in nats a token.
        vocab_size: tokens of the language model.
        base: names of the frozen parts -> fingerprints (`MiniGPT4.base`).
    """
    guessing = math.log(vocab_size)
    if loss > guessing - 0.5:
        from minigpt4.models.toy import is_toy

        logger.warning(
            "the first loss is %.2f, no better than guessing among %s tokens (%.2f): %s",
            loss,
            f"{vocab_size:,}",
            guessing,
            "the tiny model knows captions of drawn scenes only; this is a rehearsal of the steps, not of the numbers"
            if is_toy(base)
            else "the language model's weights look broken or random; check model.llama_model",
        )


class StopSignal:
    """Records SIGTERM and SIGINT, so that the current step is finished and saved.

    A second SIGINT ends the process at once. The handler only sets a flag: nothing in it may wait for another
    rank, which may have been stopped elsewhere.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._record)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _record(self, number: int, frame: FrameType | None) -> None:
        if self.received == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.received = number

    def agreed(self, step: int, processes: Processes) -> bool:
        """Whether to stop after `step` steps; the same answer on every rank."""
        if processes.world_size > 1 and step % STOP_CHECK_STEPS:
            return False
        return processes.any(self.received is not None)

    @property
    def exit_code(self) -> int:
        """Exit status of a process ended by the signal, as in a shell, so that a script does not continue."""
        return 128 + (self.received or signal.SIGTERM)
