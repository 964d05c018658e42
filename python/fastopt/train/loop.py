"""The training loop: shuffled mini-batches, forward, loss, backward, step."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cache
from math import inf, isfinite, nan
from threading import RLock
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

import fastopt as fo
from fastopt._checks import choice, counted, flag, integer, number, short_repr
from fastopt.train.checks import DataError, any_count, from_extra, ieee, kind, plain_array, seed_of
from fastopt.train.data import Array, Data
from fastopt.train.history import NOT_FINITE, Epoch, History
from fastopt.train.objective import Objective
from fastopt.train.ranks import Ranks

if TYPE_CHECKING:
    from fastopt.distributed import Sharded

with from_extra("fastopt.train"):
    from threadpoolctl import ThreadpoolController

EVALUATION_BATCH = 256  # samples at a time: the outputs of the layers stay in the cache
STOP, INTERRUPT = 1, 2  # signals of callbacks, which all ranks follow; the larger one wins


def in_parts(
    forward: Callable[[Array], Array], x: Any, features: int, params: Mapping[str, Array]
) -> Array:
    """Return ``forward(x)`` for inputs (N, features); the parts always have the same size.

    DataError if `x` has another shape, or no row.
    """
    x = plain_array("x", x, "numbers of shape (N, features)")
    if x.ndim != 2 or x.shape[1] != features or len(x) == 0:
        raise DataError(
            f"x must have shape (N, {features}) with a row for each sample, not {x.shape}"
        )
    parts = range(0, len(x), EVALUATION_BATCH)
    with blas_for(min(len(x), EVALUATION_BATCH), params):
        return np.concatenate([forward(x[i : i + EVALUATION_BATCH]) for i in parts])


@cache
def _blas() -> ThreadpoolController:
    """Return the handle of the BLAS of NumPy; finding it takes longer than an epoch of digits."""
    return ThreadpoolController().select(user_api="blas")


_blas_lock = RLock()  # an interrupted block may be collected within another block
_blas_users: set[object] = set()  # the number of blocks in all threads
_blas_before: list[tuple[Any, int]] = []  # the numbers of threads to restore after the last block


@contextmanager
def _one_blas_thread() -> Iterator[None]:
    """Let the BLAS of NumPy use one thread until the last such block in any thread has ended."""
    user = object()
    try:
        try:
            with _blas_lock:
                if not _blas_users:
                    counts = [(lib, lib.num_threads) for lib in _blas().lib_controllers]
                    _blas_before[:] = counts
                for library, _ in _blas_before:
                    library.set_num_threads(1)
                _blas_users.add(user)
            yield
        finally:
            _restore_blas(user)
    finally:
        _restore_blas(user)  # again: an interrupt may have ended the first call


def _restore_blas(user: object) -> None:
    """End a block; the last one restores the threads of the BLAS."""
    with _blas_lock:
        _blas_users.discard(user)
        if not _blas_users:
            for library, count in _blas_before:
                library.set_num_threads(count)
            _blas_before.clear()


def blas_for(rows: int, params: Mapping[str, Array]) -> AbstractContextManager[None]:
    """Let the BLAS of NumPy use one thread if `rows` times a matrix of `params` is a small product.

    Waiting for other threads would cost more, above all if other programs use the cores.
    """
    largest = max(param.size for param in params.values())
    return _one_blas_thread() if rows * largest < 4_000_000 else nullcontext()


class Model(Protocol):
    """A model for `Trainer`: `MLP`, or an object with these methods.

    With several ranks, `x` has the rank's rows of a batch, perhaps none. If the model has an
    attribute `first_row`, the trainer sets it to the number of the first one; see `MLP`.
    """

    params: dict[str, Array]

    @property
    def rng_state(self) -> Mapping[str, Any]:
        """The state of the random numbers of training, for checkpoints."""

    @rng_state.setter
    def rng_state(self, state: Mapping[str, Any]) -> None: ...

    def forward(self, x: Array, *, training: bool = False) -> Array:
        """Return the outputs (N, outputs); with `training`, keep the arrays for `backward`."""

    def backward(self, doutputs: Array) -> Mapping[str, Array]:
        """Return the gradients by parameter name; they are valid until the next `backward`."""


class Callback:
    """The methods that `Trainer.fit` calls; override those that you need.

    Examples
    --------
    >>> from fastopt import train
    >>> class Print(train.Callback):
    ...     def on_epoch_end(self, trainer, epoch):
    ...         print(epoch.epoch, trainer.data.name)
    >>> trainer = train.RunConfig(data="iris").build()
    >>> history = trainer.fit(2, [Print()])
    1 iris (scikit-learn)
    2 iris (scikit-learn)
    """

    def on_fit_begin(self, trainer: Trainer) -> None:
        """Run before the first epoch of a call of ``fit``."""

    def on_batch_end(self, trainer: Trainer, samples: int, loss: float) -> None:
        """Run after each batch, with its size and its mean loss."""

    def on_epoch_end(self, trainer: Trainer, epoch: Epoch) -> None:
        """Run after each epoch, when it is evaluated and in the history."""

    def on_fit_end(self, trainer: Trainer) -> None:
        """Run at the end, also after an exception such as Ctrl-C."""


class Trainer:
    """Trains a model, in one process or in several.

    If the optimizer is a `fastopt.distributed.Sharded`, all ranks of its communicator train
    together. Each has the model and the data, and takes its part of the rows of every batch. The
    steps are those of one process, within rounding, and the history is the same on all ranks, but
    for its times. They call `fit`, `save` and `resume` together. If one of them calls `stop` or
    `interrupt`, all end.

    Parameters
    ----------
    model : Model
        Such as `MLP`.
    data : Data
    optimizer : Optimizer
        The optimizer of ``model.params``: of all these arrays, by name. A group with ``lr=0`` does
        not change.
    objective : Objective, optional
        The loss and the score. By default those of the task of the data.
    batch_size : int
        The number of samples in a batch. The last batch of an epoch may be smaller.
    seed : int
        The seed for the order of the samples.
    scheduler : LRScheduler, optional
        A schedule of `optimizer`. It is stepped after each epoch or after each step of the
        optimizer; a `ReduceLROnPlateau` after each epoch, with the held-out loss.
    schedule_per : {"epoch", "step"}
        When the schedule is stepped.
    max_norm : float, optional
        Clip the gradients to this 2-norm over all of them.
    accumulate : int
        The number of batches whose gradients are added for one step of the optimizer. It makes a
        large batch possible in little memory; all its samples have the same weight.
    ema : WeightEMA, optional
        Averages of ``model.params``, updated after each step. Predictions, the held-out loss and
        the held-out score then use the averages.
    track_norm : bool
        Record the norm of the gradients even if they are not clipped. It costs a pass over them.

    Attributes
    ----------
    history : History
        The epochs so far.
    rank, ranks : int
        The number of this process, from 0, and the number of those that train together.
    failed : bool
        Whether an exception other than that of `interrupt` has ended the last `fit`. The other
        ranks may not have it, so ``on_fit_end`` must not call `save` then if there are others.

    Raises
    ------
    ValueError
        If the optimizer or the averages are not those of the model's parameters, or the model does
        not take the data's inputs or give the outputs they need, or ranks have different options or
        data.

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
        optimizer: fo.Optimizer | Sharded,
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
        kind("data", data, Data)
        if not isinstance(getattr(model, "params", None), Mapping) or not model.params:
            raise TypeError(
                "model must have params (a dict of arrays), forward and backward, as MLP has; "
                f"{type(model).__name__} has no params"
            )
        choice("epoch", "step")("schedule_per", schedule_per)
        if isinstance(scheduler, fo.ReduceLROnPlateau) and schedule_per == "step":
            raise ValueError("ReduceLROnPlateau looks at the held-out loss, once per epoch")
        if scheduler is not None and getattr(scheduler, "optimizer", None) is not optimizer:
            raise ValueError("scheduler belongs to another optimizer")
        if max_norm is not None:
            max_norm = number(">= 0", lambda x: x >= 0)("max_norm", max_norm)
        objective = Objective(data.task) if objective is None else objective
        kind("objective", objective, Objective)
        if objective.task != data.task:
            raise ValueError(f"the objective is for {objective.task}, the data for {data.task}")
        if ema is not None:
            kind("ema", ema, fo.WeightEMA)
        self.model = model
        self.data = data
        self.optimizer = optimizer
        self.objective = objective
        self.batch_size = any_count("batch_size", batch_size)
        self.scheduler = scheduler
        self.schedule_per = schedule_per
        self.max_norm = max_norm
        self.accumulate = any_count("accumulate", accumulate)
        self.ema = ema
        self.track_norm = flag("track_norm", track_norm)
        self._order = np.random.default_rng(seed_of("seed", seed))
        self._require_the_models_arrays()
        self._require_fitting_data()
        self._sums = fo.GradAccumulator(model.params) if self.accumulate > 1 else None
        self.history = History(max_norm=max_norm)
        self._stopping = self._interrupted = self._was_interrupted = self.failed = False
        self._begun = 0  # the number of the last epoch that has begun
        self._before: tuple[Any, Any] = (None, None)  # states of order and schedule as it began
        _blas()  # now, not within the first epoch
        self._digest = ""  # of the data, computed at first use
        comm = getattr(optimizer, "comm", None)
        self._team = None if comm is None or comm.Get_size() == 1 else Ranks(comm)
        self.rank, self.ranks = (self._team.rank, self._team.size) if self._team else (0, 1)
        if self._team is not None:
            own = self._settings() | {
                "data": str(data),
                "values of the data": self._digest[:16],
                "state of the scheduler": scheduler and scheduler.state_dict(),
                "order": self._order.bit_generator.state,
                "random numbers": model.rng_state,
            }
            self._team.require_equal(own)

    def fit(self, epochs: int, callbacks: Iterable[Callback] = ()) -> History:
        """Train until the run has `epochs` epochs, and return the history.

        Training ends earlier if a loss is not finite or if `stop` is called. The history then
        contains the batches of the incomplete epoch.

        An exception such as Ctrl-C also ends training. The incomplete epoch is then not recorded,
        but the parameters keep its steps. The next call begins this epoch again, with the same
        order of samples and the same state of the schedule.

        Parameters
        ----------
        epochs : int
            The number of epochs of the whole run, not of this call.
        callbacks : iterable of Callback

        Raises
        ------
        ValueError
            If the optimizer or the averages no longer hold the model's parameters, or ranks have
            different `epochs`.
        """
        epochs = integer(0, inf)("epochs", epochs)
        if not isinstance(callbacks, Iterable):
            raise TypeError(f"callbacks must be a list of them, not {short_repr(callbacks)}")
        callbacks = list(callbacks)
        for callback in callbacks:
            if not isinstance(callback, Callback):
                found = short_repr(callback)
                raise TypeError(f"callbacks must hold objects of type Callback, not {found}")
        self._require_the_models_arrays()
        if self._team is not None:
            self._team.require_equal({"epochs": epochs})
        if self.within_epoch:
            order, schedule = self._before
            self._order.bit_generator.state = order
            if self.scheduler is not None:
                self.scheduler.load_state_dict(schedule)
        on_batch = [
            callback.on_batch_end
            for callback in callbacks
            if type(callback).on_batch_end is not Callback.on_batch_end
        ]
        history = self.history
        if self._was_interrupted:  # the same Ctrl-C may have called `interrupt` late
            self._interrupted = False
        self._stopping = self._was_interrupted = self.failed = False
        if history.diverged:
            self.stop(NOT_FINITE)
        else:
            history.stop_reason = ""
        begin = perf_counter() - history.seconds.total
        blas = blas_for(-(-self.batch_size // self.ranks), self.model.params)
        with np.errstate(all="ignore"), blas, ExitStack() as stack:
            try:
                for callback in callbacks:
                    stack.callback(callback.on_fit_end, self)
                    callback.on_fit_begin(self)
                while len(history.epochs) < epochs and not self._ends():
                    schedule = None if self.scheduler is None else self.scheduler.state_dict()
                    self._before = self._order.bit_generator.state, schedule
                    self._begun = len(history.epochs) + 1
                    epoch = self._run_epoch(on_batch)
                    history.epochs.append(epoch)
                    history.seconds.total = perf_counter() - begin
                    if not isfinite(epoch.train_loss + epoch.val_loss):
                        self.stop(NOT_FINITE)
                    for callback in callbacks:
                        callback.on_epoch_end(self, epoch)
            except BaseException:
                self.failed = not self._was_interrupted
                raise
        return history

    def stop(self, reason: str) -> None:
        """End training after the current batch or epoch; for callbacks.

        With several ranks, it may be the next batch: the others have to hear of it.
        """
        self._stopping = True
        self.history.stop_reason = self.history.stop_reason or reason

    def interrupt(self) -> None:
        """Let `fit` raise KeyboardInterrupt after the current or the next batch, on all ranks.

        Handlers of signals call it, because Ctrl-C must not end one rank while others wait for it.
        A call before `fit` ends it at its begin; a call after a `fit` that was interrupted, which
        may come from the same Ctrl-C, has no effect.
        """
        self._interrupted = True

    @property
    def _signal(self) -> int:
        return INTERRUPT if self._interrupted else STOP * self._stopping

    def _ends(self) -> bool:
        """Return whether training ends between two epochs; all ranks decide alike."""
        signal, history = self._signal, self.history
        if self._team is not None:
            signal, history.stop_reason = self._team.agree(signal, history.stop_reason)
        return self._follow(signal)

    def _follow(self, signal: int) -> bool:
        """Return whether training ends because of a signal, or raise KeyboardInterrupt."""
        if signal == INTERRUPT:
            self._interrupted, self._was_interrupted = False, True
            raise KeyboardInterrupt
        return signal == STOP

    @property
    def within_epoch(self) -> bool:
        """Whether an epoch is incomplete, as after Ctrl-C; the run cannot be saved then."""
        return self._begun > len(self.history.epochs)

    def save(self, path: str | os.PathLike[str], extra: Any = None) -> None:
        """Write the whole run into a checkpoint; see `fastopt.save`.

        It contains the parameters, the optimizer, the schedule, the averages, the states of the
        random generators and the history. After `resume`, training gives the same bits as without
        a stop.

        Parameters
        ----------
        path : path
            Usually ``*.safetensors``.
        extra
            Your data, which `resume` returns.

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
        if self.within_epoch:
            raise RuntimeError("training ended within an epoch; only whole epochs can be saved")
        fo.save(
            path,
            params=self.model.params,
            optimizer=self.optimizer,
            scheduler=self.scheduler,
            ema=self.ema,
            extra=_Progress(self, path).state_dict() | {"extra": extra},  # not within an epoch
        )

    def resume(self, path: str | os.PathLike[str]) -> Any:
        """Load a file of `save` in place; return its `extra`.

        The trainer must have the data (under any name), the batch size, the loss and the classes of
        the saved one. Everything else is restored.

        Raises
        ------
        CheckpointError
            If the file is damaged or was not written by `save`.
        KeyError, TypeError, ValueError
            If the file belongs to another run; the message says what differs. Nothing is changed.
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
        """Return the settings that must be equal to continue a run."""
        self._digest = self._digest or self.data.digest()
        return {
            "model": repr(self.model),
            "data": f"{self.data} {self._digest}",
            "optimizer": getattr(self.optimizer, "optimizer_class", type(self.optimizer)).__name__,
            "objective": repr(self.objective),
            "batch_size": self.batch_size,
            "scheduler": None if self.scheduler is None else type(self.scheduler).__name__,
            "schedule_per": self.schedule_per,
            "max_norm": self.max_norm,
            "accumulate": self.accumulate,
            "ema": None if self.ema is None else [self.ema.decay, self.ema.warmup],
        }

    @ieee
    def predict(self, x: Array) -> Array:
        """Return the outputs (N, outputs) of the model for inputs (N, features).

        If there is an `ema`, its averages are the parameters.
        """
        with nullcontext() if self.ema is None else self.ema.applied():
            return in_parts(self.model.forward, x, self.data.features, self.model.params)

    def evaluate(self) -> tuple[float, float]:
        """Return the mean loss and the score on the held-out data.

        The score is nan if the loss is not finite.
        """
        return self._evaluate(self.predict(self.data.x_val))

    def _evaluate(self, outputs: Array) -> tuple[float, float]:
        targets = self.data.y_val
        loss = self.objective.value(outputs, targets)
        return loss, self.objective.score(outputs, targets) if isfinite(loss) else nan

    def _evaluate_together(self) -> tuple[float, float]:
        """Return the same as `evaluate`; each rank computes the outputs of some parts of the rows.

        All ranks have the same result, on hosts with different processors too.
        """
        if self._team is None:
            return self.evaluate()
        x = self.data.x_val
        parts = self._team.share(-(-len(x) // EVALUATION_BATCH))
        rows = x[parts.start * EVALUATION_BATCH : parts.stop * EVALUATION_BATCH]
        outputs = self._team.comm.allgather(self.predict(rows) if len(rows) else None)
        return self._evaluate(np.concatenate([part for part in outputs if part is not None]))

    def _run_epoch(self, on_batch: Sequence[Callable[[Trainer, int, float], None]]) -> Epoch:
        """Do the steps of one epoch, then evaluate."""
        model, objective, seconds = self.model, self.objective, self.history.seconds
        team = self._team
        x_train, y_train = self.data.x_train, self.data.y_train
        begin = perf_counter()
        order = self._order.permutation(len(y_train))
        samples, summed, total, points = 0, 0, 0.0, 0.0
        lr = float(self.optimizer.param_groups[0]["lr"])
        norms: list[float] = []
        if self._sums is not None:
            self._sums.reset()
        rows_at_once = min(self.batch_size, len(order))
        if team is not None:
            rows_at_once = len(order[team.share(rows_at_once)])
        gathered = np.empty((rows_at_once, x_train.shape[1]), x_train.dtype)
        for start in range(0, len(order), self.batch_size):
            t0 = perf_counter()
            rows = batch = order[start : start + self.batch_size]
            if team is not None:
                share = team.share(len(batch))
                rows = batch[share]
                if hasattr(model, "first_row"):
                    model.first_row = share.start
            x = x_train.take(rows, 0, None if len(rows) < len(gathered) else gathered, "clip")
            y = y_train.take(rows, 0)
            t1 = perf_counter()
            outputs = model.forward(x, training=True)
            t2 = perf_counter()
            value, scored = objective.backward_(outputs, y) if len(rows) else (0.0, 0.0)
            t3 = perf_counter()
            grads: Mapping[str, Array | None] = model.backward(outputs)
            t4 = perf_counter()
            signal, weight, scale = 0, None, 1.0
            if team is not None:  # the time of the step includes that of waiting for other ranks
                value, scored, signal = team.add(value * len(rows), scored, self._signal)
                value, weight = value / len(batch), len(rows)
            samples += len(batch)
            if self._sums is not None:
                self._sums.add(grads, weight=len(rows))
                grads = self._sums.grads
                summed += len(batch)
                weight, scale = None, summed
            if (start // self.batch_size + 1) % self.accumulate == 0 or samples == len(order):
                lr = float(self.optimizer.param_groups[0]["lr"])
                norm = self._step(grads, scale, weight)
                summed = 0
                if norm is not None:
                    norms.append(norm)
            t5 = perf_counter()
            seconds.batch += t1 - t0
            seconds.forward += t2 - t1
            seconds.loss += t3 - t2
            seconds.backward += t4 - t3
            seconds.step += t5 - t4
            total += value * len(batch)
            points += scored
            for call in on_batch:
                call(self, len(batch), value)
            if team is None:
                signal = self._signal
            if (signal and self._follow(signal)) or not isfinite(value):
                break
        trained = perf_counter()
        val_loss, val_score = self._evaluate_together()
        seconds.evaluation += perf_counter() - trained
        if isinstance(self.scheduler, fo.ReduceLROnPlateau):
            self.scheduler.step(val_loss)
        elif self.scheduler is not None and self.schedule_per == "epoch":
            self.scheduler.step()
        train_loss = total / samples
        train_score = objective.score_of(points, y_train[order[:samples]])
        return Epoch(
            epoch=self._begun,
            train_loss=train_loss,
            train_score=train_score if isfinite(train_loss) else nan,
            val_loss=val_loss,
            val_score=val_score,
            lr=lr,
            grad_norm=float(np.mean(norms)) if norms else nan,
            grad_norm_max=max(norms, default=nan),
            samples_per_second=samples / (trained - begin),
        )

    def _require_the_models_arrays(self) -> None:
        """Raise unless the optimizer and the averages hold the parameter arrays of the model."""
        groups = getattr(self.optimizer, "param_groups", None)
        if not isinstance(groups, list):
            raise TypeError(f"optimizer must be one of fastopt's, not {short_repr(self.optimizer)}")
        held: dict[str, dict[str, Any]] = {"optimizer": {}}
        for group in groups:
            held["optimizer"] |= zip(group.get("param_names", ()), group["params"], strict=False)
        if self.ema is not None:
            held["ema"] = dict(self.ema.params)
        params = self.model.params
        for what, arrays in held.items():
            for names, problem in (
                (params.keys() - arrays, f"{what} does not hold"),
                (arrays.keys() - params, "the model has no"),
                (
                    {n for n in params.keys() & arrays if not _same_memory(params[n], arrays[n])},
                    f"{what} holds arrays that are not the model's for",
                ),
            ):
                if names:
                    listed = ", ".join(map(repr, sorted(names)[:4])) + ", ..." * (len(names) > 4)
                    raise ValueError(
                        f"{problem} {listed}; make the {what} of all of model.params, by name"
                    )

    @ieee
    def _require_fitting_data(self) -> None:
        """Raise unless the model takes a sample of the data and returns outputs for the task."""
        data, x = self.data, self.data.x_val[:1]
        try:
            outputs = self.model.forward(x)
        except ValueError as error:
            raise ValueError(
                f"the model does not take the data's {counted(data.features, 'feature')}: {error}"
            ) from error
        if not isinstance(outputs, np.ndarray):
            raise TypeError(f"the model's forward must return an array, not {short_repr(outputs)}")
        if outputs.shape != (1, data.outputs):
            raise ValueError(
                f"for one sample the model gives outputs of shape {outputs.shape}, but {data.task} "
                f"with these data needs (1, {data.outputs})"
            )

    def __repr__(self) -> str:
        return (
            f"Trainer({self.model!r}, {self.data!r}, {type(self.optimizer).__name__}, "
            f"{self.objective!r}, batch_size={self.batch_size}, "
            f"{counted(len(self.history.epochs), 'epoch')} so far)"
        )

    def _step(
        self, grads: Mapping[str, Array | None], scale: float, weight: int | None
    ) -> float | None:
        """Do a step with ``grads / scale``; return their norm if it is recorded.

        With several ranks, it is the sum of their gradients, or with a weight their weighted mean.
        """
        norm, max_norm = None, self.max_norm
        step: Any = self.optimizer.step
        info: fo.StepInfo
        if self._team is None:
            if self.track_norm and max_norm is None:
                norm = fo.grad_norm(grads) / scale
            info = step(grads, max_norm=max_norm, grad_scale=scale)
        else:
            if self.track_norm and max_norm is None:
                max_norm = inf  # returns the norm, and clips nothing
            info = step(grads, max_norm=max_norm, grad_scale=scale, weight=weight)
        if self._sums is not None:
            self._sums.reset()
        if self.ema is not None:
            self.ema.update()
        if self.scheduler is not None and self.schedule_per == "step":
            self.scheduler.step()
        return info.grad_norm if norm is None else norm


def _same_memory(first: Any, second: Any) -> bool:
    """Return whether two arrays are the same, or views of the same elements."""
    if first is second or not (isinstance(first, np.ndarray) and isinstance(second, np.ndarray)):
        return first is second
    places = [(a.__array_interface__["data"][0], a.shape, a.strides) for a in (first, second)]
    return places[0] == places[1] and first.dtype == second.dtype


class _Progress:
    """The saved state of a trainer, except its arrays; it is loaded whole or not at all."""

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
            "within_epoch": trainer.within_epoch,
            "extra": None,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        trainer, own = self._trainer, self.state_dict()
        # Older files have no "within_epoch": only whole epochs are saved.
        if (
            not isinstance(state_dict, Mapping)
            or state_dict.keys() | {"within_epoch"} != own.keys()
        ):
            raise fo.CheckpointError(f"{self._path} is a checkpoint, but not one of a Trainer")
        # `save` refuses an incomplete epoch. Only a trainer within an epoch may load such a state.
        if state_dict.get("within_epoch") and not trainer.within_epoch:
            raise fo.CheckpointError(f"{self._path} was saved within an epoch")
        settings = state_dict["settings"]
        if not isinstance(settings, Mapping):
            raise fo.CheckpointError(f"{self._path} does not hold the settings of a Trainer")
        differing = [
            _difference(name, settings.get(name), value)
            for name, value in own["settings"].items()
            if not _same_setting(name, settings.get(name), value)
        ]
        if differing:
            raise ValueError(f"{self._path} is of another run: {'; '.join(differing)}")
        order = np.random.default_rng()
        try:
            history = History.from_state_dict(state_dict["history"])
            order.bit_generator.state = state_dict["order"]
            # This may fail in the middle. `fo.load` then calls this method with the old state.
            trainer.model.rng_state = state_dict["model"]
        except MemoryError:
            raise
        except Exception as error:  # the setters of generators raise any exception
            raise fo.CheckpointError(
                f"{self._path} does not hold what a Trainer saves: {error!r}"
            ) from error
        trainer._order = order
        vars(trainer.history).update(vars(history))
        trainer._begun = len(trainer.history.epochs) + (state_dict.get("within_epoch") is True)


def _short(value: Any) -> str:
    """Return a value of a file for a message, also if it is large or deep."""
    return value if isinstance(value, str) else reprlib.repr(value)


def _difference(name: str, there: Any, here: Any) -> str:
    """Describe how a setting of a file differs from ours."""
    if name != "data" or not isinstance(there, str):
        return f"{name} is {_short(there)} there, {here} here"
    there, here = there.rpartition(" ")[0], here.rpartition(" ")[0]
    if there == here:
        return f"the values or the split of the data differ ({here})"
    return f"the data are {there} there, {here} here"


def _same_setting(name: str, there: Any, here: Any) -> bool:
    """Return whether a setting allows to continue; the name of the data does not matter."""
    if name == "data" and isinstance(there, str):
        there, here = there.rpartition(" ")[2], here.rpartition(" ")[2]
    try:
        return bool(there == here)
    except ValueError:  # an array
        return False
