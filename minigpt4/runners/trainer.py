"""The training loop: steps, logging, validation, checkpoints, resume and the guard against non-finite values."""

from __future__ import annotations

import logging
import math
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from minigpt4.common.distributed import Processes, SharedGradients
from minigpt4.common.errors import MiniGPT4Error
from minigpt4.common.logging import append_epoch, train_line, truncate_log
from minigpt4.common.registry import runners
from minigpt4.common.schema import RunConfig
from minigpt4.common.types import Batch
from minigpt4.models.flops import Work
from minigpt4.runners.checkpoints import (
    BEST,
    LAST,
    epoch_file,
    load_optimizer,
    rng_state,
    save,
    seed_all,
    set_rng_state,
)
from minigpt4.runners.metrics import EpochMeter, StepClock, StepRecord, StepWindow, Throughput, Trackers, peak_memory
from minigpt4.runners.optim import OptimizerStep, Plan
from minigpt4.tasks import StepLoss, Task

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunParts:
    """What a runner is given, built beforehand and in plain sight.

    Attributes:
        run: Its part of the configuration.
        resolved: The whole configuration in plain form, for checkpoints.
        identity: What else makes it this run and no other (`run_identity`).
        plan: Its sizes.
        processes: That share the work.
        model: With `trainable_state`, `metadata` and `encoder`; its trainable parts wrapped in `shared`.
        shared: Adds up gradients over the processes.
        task: Says what a step and a validation are.
        updater: Optimizer, loss scale and clipping.
        schedule: Global optimizer step -> learning rate.
        train_batches: First optimizer step -> this process's micro-batches from there to the end of the run.
        valid_batches: This process's share of the validation split; None: there is none.
        folder: The run folder.
        trackers: Where curves are sent.
        peak: FLOP/s that the devices of all processes reach together in a large matrix product.
    """

    run: RunConfig
    resolved: Mapping[str, Any]
    identity: Mapping[str, Any]
    plan: Plan
    processes: Processes
    model: Any
    shared: SharedGradients
    task: Task
    updater: OptimizerStep
    schedule: Callable[[int], float]
    train_batches: Callable[[int], Iterable[Batch]]
    valid_batches: Iterable[Batch] | None
    folder: Path
    trackers: Trackers
    peak: float


CHECK_EVERY = 5
"""Optimizer steps between two questions to the other processes whether one was told to stop."""


class StopSignal:
    """Remembers SIGTERM and SIGINT, so that the step under way is finished and saved.

    A second SIGINT ends the process at once. The handler only sets a flag: nothing in it may wait for another
    process, which may have been stopped elsewhere.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.received == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.received = number

    def agreed(self, step: int, processes: Processes) -> bool:
        """Whether to stop after `step` steps, the same answer in every process."""
        if processes.world_size > 1 and step % CHECK_EVERY:
            return False
        return processes.any(self.received is not None)

    @property
    def exit_code(self) -> int:
        """As a shell reports a process ended by the signal, so that a script does not go on as if all were done."""
        return 128 + (self.received or signal.SIGTERM)


LIMIT = 5
"""Skipped steps in a row that end the run."""
SCALED_LIMIT = 20
"""The same with a loss scale, which needs up to 16 of them to find its level."""
SHOWN_SAMPLES = 8


class TrainingError(MiniGPT4Error):
    """Training cannot go on."""


class FiniteGuard:
    """Reports skipped updates with their samples, and ends the run when they do not stop.

    The weights are safe already: the updater has left them as they were.

    Args:
        scaled: Whether a loss scale is in use, with which a skipped step now and then is normal.
    """

    def __init__(self, scaled: bool) -> None:
        self.scaled = scaled
        self.in_a_row = 0

    def check(self, records: Sequence[StepRecord], processes: Processes) -> None:
        """Look at the steps since the last log point; every process must call it with the same ones.

        Raises:
            TrainingError: Too many steps in a row were skipped; the message names the steps and the samples.
        """
        limit = SCALED_LIMIT if self.scaled else LIMIT
        for record in records:
            if not record.skipped and record.finite:
                self.in_a_row = 0
                continue
            self.in_a_row += 1
            if self.scaled and record.finite and self.in_a_row < limit:
                logger.info("step %d: gradients overflowed; loss scale lowered, update skipped", record.step)
                continue
            message = _message(record, processes)
            if self.in_a_row >= limit:
                raise TrainingError(
                    f"{message} This is the {self.in_a_row}th step in a row; lower run.init_lr, set run.amp=off or "
                    "bf16, or look at these samples, then go on with run.resume_ckpt_path"
                )
            if processes.is_main:
                logger.warning("%s", message)


def _message(record: StepRecord, processes: Processes) -> str:
    what = "gradient" if record.finite else "loss"
    guilty = record.image_ids if record.bad_here or record.finite else []
    samples = [name for ids in processes.gather(guilty) for name in ids]
    shown = ", ".join(samples[:SHOWN_SAMPLES])
    more = f" and {len(samples) - SHOWN_SAMPLES} more" if len(samples) > SHOWN_SAMPLES else ""
    return (
        f"step {record.step}: the {what} is not finite (samples: {shown}{more}); "
        "the update was skipped and the weights are unchanged."
    )


def check_first_loss(loss: float, vocab_size: int) -> None:
    """Warn when the very first loss is that of guessing, which a language model with its weights never shows."""
    guessing = math.log(vocab_size)
    if loss > guessing - 0.5:
        logger.warning(
            "the first loss is %.2f, no better than guessing among %s tokens (%.2f): the language model's weights look "
            "broken or random; check model.llama_model",
            loss,
            f"{vocab_size:,}",
            guessing,
        )


@dataclass(slots=True)
class TrainState:
    """Where a run stands, beyond weights and optimizer.

    Attributes:
        step: Optimizer steps done; the schedule and the sampler depend on nothing else.
        best_val_loss: Lowest so far; None: not measured yet.
        best_epoch: The epoch it was reached in.
        skipped_in_a_row: Updates left out just before because gradients were not finite.
        meter: Running sums of the epoch under way.
    """

    step: int = 0
    best_val_loss: float | None = None
    best_epoch: int | None = None
    skipped_in_a_row: int = 0
    meter: EpochMeter = field(default_factory=EpochMeter)

    def is_best(self, val_loss: float | None, epoch: int) -> bool:
        """Whether this epoch is the best so far, which is then remembered. A loss that is not a number never is."""
        if val_loss is None or val_loss != val_loss:
            return False
        if self.best_val_loss is not None and val_loss >= self.best_val_loss:
            return False
        self.best_val_loss, self.best_epoch = val_loss, epoch
        return True

    def content(self, processes: Processes) -> dict[str, Any]:
        """The entries "step", "rng" and "progress" of a checkpoint; every process must call it."""
        own: dict[str, Any] = {"rng": rng_state(), "skipped_images": self.meter.skipped_images}
        everyone = processes.gather(own)
        progress = {
            "best_val_loss": self.best_val_loss,
            "best_epoch": self.best_epoch,
            "skipped_in_a_row": self.skipped_in_a_row,
            "meter": self.meter.state_dict() | {"skipped_images": sum(one["skipped_images"] for one in everyone)},
        }
        return {"step": self.step, "rng": [one["rng"] for one in everyone], "progress": progress}

    def restore(self, content: Mapping[str, Any], processes: Processes, seed: int) -> None:
        """Take the state of a checkpoint; a process that did not exist when it was written is seeded anew."""
        progress = content["progress"]
        self.step = content["step"]
        self.best_val_loss = progress["best_val_loss"]
        self.best_epoch = progress["best_epoch"]
        self.skipped_in_a_row = progress["skipped_in_a_row"]
        self.meter.load_state_dict(progress["meter"])
        if not processes.is_main:
            self.meter.skipped_images = 0  # the main process carries the sum on
        if processes.rank < len(content["rng"]):
            set_rng_state(content["rng"][processes.rank])
        else:
            seed_all(seed + processes.rank)


def checkpoint_content(parts: RunParts, state: TrainState, epoch: int, val_loss: float | None = None) -> dict[str, Any]:
    """A whole checkpoint, in the published layout with what a resumed run needs added; every process must call it.

    Args:
        parts: Of the run.
        state: Where it stands.
        epoch: The one under way, or just done.
        val_loss: Measured after it.
    """
    with parts.shared.unwrapped():
        model = {name: tensor.clone() for name, tensor in parts.model.trainable_state().items()}
    metadata = dict(parts.model.metadata()) | {"epoch": str(epoch), "step": str(state.step)}
    if val_loss is not None:
        metadata["val_loss"] = repr(val_loss)
    scaler = parts.updater.scaler
    return {
        "model": model,
        "optimizer": parts.updater.optimizer.state_dict(),
        "config": dict(parts.resolved),
        "scaler": scaler.state_dict() if scaler.is_enabled() else None,
        "epoch": epoch,
        "metadata": metadata,
        "run": dict(parts.identity),
        **state.content(parts.processes),
    }


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
            truncate_log(parts.folder / "log.txt", self.state.step)
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
                with self.parts.processes.report_lost_ranks(lambda: f"step {self.state.step}"):
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
