"""The training loop: shuffled mini-batches, forward, loss, backward, step."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from functools import cache
from math import isfinite, nan
from operator import index
from time import perf_counter
from typing import Any, Literal, Protocol

import numpy as np
from threadpoolctl import ThreadpoolController

import fastopt as fo
from fastopt.train.callbacks import Callback
from fastopt.train.data import Array, Data
from fastopt.train.history import Epoch, History
from fastopt.train.objective import Objective

EVALUATION_BATCH = 4096  # samples at a time


@cache
def _blas() -> ThreadpoolController:
    """Return the handle of NumPy's BLAS; finding it takes longer than an epoch of digits."""
    return ThreadpoolController().select(user_api="blas")


class Model(Protocol):
    """What `Trainer` trains: `MLP`, or anything of this shape."""

    params: dict[str, Array]

    @property
    def rng_state(self) -> Mapping[str, Any]:
        """The state of the random numbers used while training, as a checkpoint keeps it."""

    @rng_state.setter
    def rng_state(self, state: Mapping[str, Any]) -> None: ...

    def forward(self, x: Array, *, training: bool = False) -> Array:
        """Return the outputs (N, outputs); with `training`, keep what `backward` needs."""

    def backward(self, doutputs: Array) -> Mapping[str, Array]:
        """Return the gradients by the parameters' names; valid until the next `backward`."""


class Trainer:
    """Trains a model, epoch by epoch.

    Parameters
    ----------
    model : Model
        Such as `MLP`.
    data : Data
    optimizer : Optimizer
        Over ``model.params``.
    objective : Objective, optional
        The loss and the score; the default of the data's task without it.
    batch_size : int
        Samples in a batch; the last of an epoch may be smaller.
    seed : int
        For the order of the samples.
    scheduler : LRScheduler, optional
        Over `optimizer`; moved on after each epoch or each step of the optimizer, and after each
        epoch with the held-out loss if it is a `ReduceLROnPlateau`.
    schedule_per : {"epoch", "step"}
        Which of these.
    max_norm : float, optional
        Clip the gradients to this 2-norm over all of them.
    accumulate : int
        Batches whose gradients make one step of the optimizer, so that a large batch fits into
        little memory: `batch_size` times as many samples count, each as much as the others.
    ema : WeightEMA, optional
        Over ``model.params``; updated after each step. Predictions, the held-out loss and score
        among them, are then those of the averages.
    track_norm : bool
        Record the norm of the gradients even if they are not clipped; it costs a pass over them.

    Attributes
    ----------
    history : History
        Filled as training goes on.

    Raises
    ------
    ValueError, TypeError
        If an option cannot be used.

    Examples
    --------
    >>> import fastopt as fo
    >>> from fastopt import train
    >>> data = train.load_data("iris")
    >>> model = train.MLP([data.features, 16, data.outputs])
    >>> trainer = train.Trainer(model, data, fo.AdamW(model.params, lr=0.01), batch_size=16)
    >>> history = trainer.fit(20)
    >>> len(history.epochs), history.best.val_score > 0.9
    (20, True)
    """

    def __init__(
        self,
        model: Model,
        data: Data,
        optimizer: fo.Optimizer,
        objective: Objective | None = None,
        *,
        batch_size: int = 64,
        seed: int = 0,
        scheduler: fo.LRScheduler | None = None,
        schedule_per: Literal["epoch", "step"] = "epoch",
        max_norm: float | None = None,
        accumulate: int = 1,
        ema: fo.WeightEMA | None = None,
        track_norm: bool = False,
    ) -> None:
        if index(batch_size) < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        if index(accumulate) < 1:
            raise ValueError(f"accumulate must be at least 1, not {accumulate}")
        if schedule_per not in ("epoch", "step"):
            raise ValueError(f"schedule_per must be 'epoch' or 'step', not {schedule_per!r}")
        if isinstance(scheduler, fo.ReduceLROnPlateau) and schedule_per == "step":
            raise ValueError("ReduceLROnPlateau looks at the held-out loss, once per epoch")
        if scheduler is not None and scheduler.optimizer is not optimizer:
            raise ValueError("scheduler belongs to another optimizer")
        if max_norm is not None and not max_norm >= 0:
            raise ValueError(f"max_norm must be >= 0, not {max_norm}")
        objective = Objective(data.task) if objective is None else objective
        if objective.task != data.task:
            raise ValueError(f"the objective is for {objective.task}, the data for {data.task}")
        self.model = model
        self.data = data
        self.optimizer = optimizer
        self.objective = objective
        self.batch_size = index(batch_size)
        self.scheduler = scheduler
        self.schedule_per = schedule_per
        self.max_norm = max_norm
        self.accumulate = index(accumulate)
        self.ema = ema
        self.track_norm = track_norm
        self._sums = fo.GradAccumulator(model.params) if self.accumulate > 1 else None
        self.history = History(max_norm=max_norm)
        self._order = np.random.default_rng(seed)
        self._stopping = False
        self._within_epoch = False
        _blas()  # now, not within the first epoch
        self._digest = ""  # of the data, when it is asked for

    def fit(self, epochs: int, callbacks: Iterable[Callback] = ()) -> History:
        """Train until there have been `epochs` epochs in all, and return the history.

        It ends earlier if a loss is not finite or `stop` is called; an epoch that is cut short so
        is recorded with what it saw.

        Parameters
        ----------
        epochs : int
            Counted from the first epoch of the run, not of this call.
        callbacks : iterable of Callback
        """
        callbacks = list(callbacks)
        on_batch = [
            callback.on_batch_end
            for callback in callbacks
            if type(callback).on_batch_end is not Callback.on_batch_end
        ]
        history = self.history
        history.stop_reason = ""
        self._stopping = False
        if history.diverged:
            self.stop("the loss is not finite")
        begin = perf_counter() - history.seconds.total
        with ExitStack() as stack:
            stack.enter_context(np.errstate(over="ignore", invalid="ignore"))
            if self.batch_size * max(p.size for p in self.model.params.values()) < 4_000_000:
                # BLAS's products are too small to share: waiting costs more.
                stack.enter_context(_blas().limit(limits=1))
            for callback in callbacks:
                stack.callback(callback.on_fit_end, self)
                callback.on_fit_begin(self)
            while len(history.epochs) < epochs and not self._stopping:
                self._within_epoch = True
                epoch = self._run_epoch(on_batch)
                history.epochs.append(epoch)
                self._within_epoch = False
                history.seconds.total = perf_counter() - begin
                if not isfinite(epoch.train_loss + epoch.val_loss):
                    self.stop("the loss is not finite")
                for callback in callbacks:
                    callback.on_epoch_end(self, epoch)
        return history

    def stop(self, reason: str) -> None:
        """End training after the batch or the epoch that is under way; for callbacks."""
        self._stopping = True
        self.history.stop_reason = self.history.stop_reason or reason

    @property
    def within_epoch(self) -> bool:
        """Whether an epoch has begun and not ended, as after Ctrl-C: it cannot be saved then."""
        return self._within_epoch

    def save(self, path: str | os.PathLike[str], extra: Any = None) -> None:
        """Write all that the run consists of into a checkpoint; see `fastopt.save`.

        That is the parameters, the optimizer, the schedule, the averages, the states of the random
        generators and the history, so that `resume` goes on as if the run had never stopped, to
        the bit.

        Parameters
        ----------
        path : path
            By custom ``*.safetensors``.
        extra
            Something of your own, which `resume` returns.

        Raises
        ------
        RuntimeError
            Within an epoch.
        OSError
            If the file cannot be written.

        Examples
        --------
        >>> import tempfile
        >>> from fastopt import train
        >>> config = train.RunConfig(data="iris", epochs=4)
        >>> whole, first, second = config.build(), config.build(), config.build()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     history = first.fit(2)
        ...     first.save(f"{folder}/run.safetensors")
        ...     second.resume(f"{folder}/run.safetensors")
        >>> second.fit(4).epochs[-1].val_loss == whole.fit(4).epochs[-1].val_loss
        True
        """
        if self._within_epoch:
            raise RuntimeError("training ended within an epoch; only whole epochs can be saved")
        fo.save(
            path,
            params=self.model.params,
            optimizer=self.optimizer,
            scheduler=self.scheduler,
            ema=self.ema,
            extra=_Progress(self, path).state_dict() | {"extra": extra},  # within no epoch
        )

    def resume(self, path: str | os.PathLike[str]) -> Any:
        """Take over what `save` has written, in place; return its `extra`.

        The trainer must have been built as the one that was saved: the same data (under any name),
        batch size, loss and classes; the rest is restored.

        Raises
        ------
        CheckpointError
            If the file is damaged or was not written by `save`.
        KeyError, TypeError, ValueError
            If it belongs to another run; the message says what differs. Nothing is changed then.
        OSError
            If the file cannot be read.
        """
        extra = fo.load(
            path,
            params=self.model.params,
            optimizer=self.optimizer,
            scheduler=self.scheduler,
            ema=self.ema,
            extra=_Progress(self, path),
        ).extra
        return extra["extra"]

    def _settings(self) -> dict[str, Any]:
        """Return what must be equal for a run to be the same."""
        self._digest = self._digest or self.data.digest()
        return {
            "model": repr(self.model),
            "data": f"{self.data.name} {self._digest}",
            "optimizer": type(self.optimizer).__name__,
            "objective": repr(self.objective),
            "batch_size": self.batch_size,
            "scheduler": None if self.scheduler is None else type(self.scheduler).__name__,
            "schedule_per": self.schedule_per,
            "max_norm": self.max_norm,
            "accumulate": self.accumulate,
            "ema": None if self.ema is None else [self.ema.decay, self.ema.warmup],
        }

    def predict(self, x: Array) -> Array:
        """Return the model's outputs (N, outputs) for inputs (N, features).

        If there is an `ema`, with its averages for parameters.
        """
        parts = range(0, len(x), EVALUATION_BATCH)
        with nullcontext() if self.ema is None else self.ema.applied():
            return np.concatenate([self.model.forward(x[i : i + EVALUATION_BATCH]) for i in parts])

    def evaluate(self) -> tuple[float, float]:
        """Return the mean loss and the score on the held-out data."""
        outputs = self.predict(self.data.x_val)
        targets = self.data.y_val
        return self.objective.value(outputs, targets), self.objective.score(outputs, targets)

    def _run_epoch(self, on_batch: Sequence[Callable[[Trainer, int, float], None]]) -> Epoch:
        """Take the steps of one epoch and evaluate."""
        model, objective, seconds = self.model, self.objective, self.history.seconds
        x_train, y_train = self.data.x_train, self.data.y_train
        begin = perf_counter()
        order = self._order.permutation(len(y_train))
        samples, total, points = 0, 0.0, 0.0
        lr = float(self.optimizer.param_groups[0]["lr"])
        norms: list[float] = []
        if self._sums is not None:
            self._sums.reset()
        rows_at_once = min(self.batch_size, len(order))
        gathered = np.empty((rows_at_once, x_train.shape[1]), x_train.dtype)
        for start in range(0, len(order), self.batch_size):
            t0 = perf_counter()
            rows = order[start : start + self.batch_size]
            x = x_train.take(rows, 0, None if len(rows) < len(gathered) else gathered, "clip")
            y = y_train.take(rows, 0)
            t1 = perf_counter()
            outputs = model.forward(x, training=True)
            t2 = perf_counter()
            value, scored = objective.backward_(outputs, y)
            t3 = perf_counter()
            grads: Mapping[str, Array | None] = model.backward(outputs)
            t4 = perf_counter()
            samples += len(rows)
            scale = 1.0
            if self._sums is not None:
                self._sums.add(grads, weight=len(rows))
                grads, scale = self._sums.grads, self._sums.weight
            if (start // self.batch_size + 1) % self.accumulate == 0 or samples == len(order):
                lr = float(self.optimizer.param_groups[0]["lr"])
                norm = self._step(grads, scale)
                if norm is not None:
                    norms.append(norm)
            t5 = perf_counter()
            seconds.batch += t1 - t0
            seconds.forward += t2 - t1
            seconds.loss += t3 - t2
            seconds.backward += t4 - t3
            seconds.step += t5 - t4
            total += value * len(rows)
            points += scored
            for call in on_batch:
                call(self, len(rows), value)
            if self._stopping or not isfinite(value):
                break
        trained = perf_counter()
        val_loss, val_score = self.evaluate()
        seconds.evaluation += perf_counter() - trained
        if isinstance(self.scheduler, fo.ReduceLROnPlateau):
            self.scheduler.step(val_loss)
        elif self.scheduler is not None and self.schedule_per == "epoch":
            self.scheduler.step()
        return Epoch(
            epoch=len(self.history.epochs) + 1,
            train_loss=total / samples,
            train_score=objective.score_of(points, y_train[order[:samples]]),
            val_loss=val_loss,
            val_score=val_score,
            lr=lr,
            grad_norm=float(np.mean(norms)) if norms else nan,
            grad_norm_max=max(norms, default=nan),
            samples_per_second=samples / (trained - begin),
        )

    def _step(self, grads: Mapping[str, Array | None], scale: float) -> float | None:
        """Take a step with ``grads / scale``; return their norm if it is wanted."""
        norm = None
        if self.track_norm and self.max_norm is None:
            norm = fo.grad_norm(grads) / scale
        info = self.optimizer.step(grads, max_norm=self.max_norm, grad_scale=scale)
        if self._sums is not None:
            self._sums.reset()
        if self.ema is not None:
            self.ema.update()
        if self.scheduler is not None and self.schedule_per == "step":
            self.scheduler.step()
        return info.grad_norm if norm is None else norm


class _Progress:
    """What a trainer saves beside its arrays, and takes over again: all of it or nothing."""

    def __init__(self, trainer: Trainer, path: str | os.PathLike[str]) -> None:
        self._trainer = trainer
        self._path = path

    def state_dict(self) -> dict[str, Any]:
        trainer = self._trainer
        return {
            "settings": trainer._settings(),
            "order": trainer._order.bit_generator.state,
            "model": trainer.model.rng_state,
            "history": trainer.history.state_dict(),
            "within_epoch": trainer._within_epoch,
            "extra": None,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        trainer, own = self._trainer, self.state_dict()
        # Older files lack "within_epoch": only whole epochs are saved.
        if (
            not isinstance(state_dict, Mapping)
            or state_dict.keys() | {"within_epoch"} != own.keys()
        ):
            raise fo.CheckpointError(f"{self._path} is a checkpoint, but not one of a Trainer")
        settings = state_dict["settings"]
        if not isinstance(settings, Mapping):
            raise fo.CheckpointError(f"{self._path} does not hold the settings of a Trainer")
        differing = [
            f"{name} is {_short(settings.get(name))} there, {value} here"
            for name, value in own["settings"].items()
            if not _same_setting(name, settings.get(name), value)
        ]
        if differing:
            raise ValueError(f"{self._path} is of another run: {'; '.join(differing)}")
        order = np.random.default_rng()
        try:
            history = History.from_state_dict(state_dict["history"])
            order.bit_generator.state = state_dict["order"]
            # This may fail half-way. `fo.load` then calls this method with what was before.
            trainer.model.rng_state = state_dict["model"]
        except MemoryError:
            raise
        except Exception as error:  # the setters of generators raise of everything
            raise fo.CheckpointError(
                f"{self._path} does not hold what a Trainer saves: {error!r}"
            ) from error
        trainer._order = order
        vars(trainer.history).update(vars(history))
        trainer._within_epoch = state_dict.get("within_epoch") is True


def _short(value: Any) -> str:
    """Return a value of a file for a message, however large or deep it is."""
    return value if isinstance(value, str) else reprlib.repr(value)


def _same_setting(name: str, there: Any, here: Any) -> bool:
    """Return whether a setting allows to go on; data are the same whatever their name."""
    if name == "data" and isinstance(there, str):
        there, here = there.rpartition(" ")[2], here.rpartition(" ")[2]
    try:
        return bool(there == here)
    except ValueError:  # an array
        return False
