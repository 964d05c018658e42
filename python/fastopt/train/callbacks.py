"""Callbacks: logs, checkpoints, and rules that end a training run early.

With several ranks, each has the callbacks, and rank 0 writes the files.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, fields
from math import inf, isfinite, isnan
from pathlib import Path
from typing import IO, Any

from fastopt._checks import as_path, counted, integer, non_negative, number
from fastopt._files import remove_leftovers
from fastopt.train.checks import any_count
from fastopt.train.history import DIVERGED, Epoch
from fastopt.train.loop import Callback, Trainer

_not_nan = number("a number", lambda x: not isnan(x))


class Divergence(Callback):
    """Ends a run whose loss has grown, after the second epoch or later.

    The training loss must be more than ten times the held-out loss before training, and the
    held-out loss must be above that too.

    `Trainer.fit` ends a run whose loss is not finite. This callback is for finite losses. It
    ignores the first epoch, because a good learning rate may begin with a large loss.

    Parameters
    ----------
    before : float, optional
        The held-out loss before training. By default that of the model when ``fit`` begins. A
        resumed run needs it.

    Examples
    --------
    >>> from fastopt import train
    >>> trainer = train.RunConfig(data="digits", lr=100.0).build()
    >>> trainer.fit(10, [train.Divergence()]).diverged
    True
    """

    def __init__(self, before: float | None = None) -> None:
        self._before = None if before is None else _not_nan("before", before)

    def on_fit_begin(self, trainer: Trainer) -> None:
        """Record the loss before training."""
        self._measure = trainer.evaluate()[0] if self._before is None else self._before

    def on_epoch_end(self, trainer: Trainer, epoch: Epoch) -> None:
        """Stop if the loss has grown."""
        grew = epoch.train_loss > 10 * self._measure and epoch.val_loss > self._measure
        if epoch.epoch > 1 and grew:
            trainer.stop(DIVERGED)


class CSVLogger(Callback):
    """Writes a line into a CSV file after each epoch.

    A run that continues writes its earlier epochs again, so that the file always has all epochs.

    Parameters
    ----------
    path : path
        It is replaced when the first epoch is written. The columns are the fields of `Epoch`.

    Raises
    ------
    OSError
        From ``fit``, if the file cannot be written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = as_path("path", path)
        self._file: IO[str] | None = None

    def __repr__(self) -> str:
        return f"CSVLogger({str(self.path)!r})"

    def on_fit_begin(self, trainer: Trainer) -> None:
        """Open the file, and write the earlier epochs."""
        if trainer.rank > 0:
            return
        self._file = self.path.open("a", newline="", encoding="utf-8")
        self._started = False
        if trainer.history.epochs:
            self._write(trainer.history.epochs)

    def on_epoch_end(self, trainer: Trainer, epoch: Epoch) -> None:
        """Add a line."""
        if self._file is not None:
            self._write([epoch])

    def on_fit_end(self, trainer: Trainer) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _write(self, epochs: Sequence[Epoch]) -> None:
        assert self._file is not None
        writer = csv.DictWriter(self._file, [f.name for f in fields(Epoch)], lineterminator="\n")
        if not self._started:
            if self._file.seekable() and self._file.tell():
                self._file.truncate(0)
            writer.writeheader()
            self._started = True
        writer.writerows(map(asdict, epochs))
        self._file.flush()


class EarlyStopping(Callback):
    """Ends training when the held-out loss has not fallen for some epochs.

    It depends only on the history, so that a run with interrupts stops after the same epoch. The
    model keeps the weights of this last epoch, not those of the lowest loss.

    Parameters
    ----------
    patience : int
        Stop after this number of epochs without a new lowest held-out loss; >= 1.
    min_delta : float
        A loss counts as lower if the difference is more than this; >= 0.

    References
    ----------
    Prechelt, "Early stopping - but when?", in Neural Networks: Tricks of the Trade, 1998.

    Examples
    --------
    >>> from fastopt import train
    >>> trainer = train.RunConfig(data="iris", lr=0.05).build()
    >>> history = trainer.fit(500, [train.EarlyStopping(patience=5)])
    >>> print(history.stop_reason)
    the held-out loss has not fallen for 5 epochs
    """

    def __init__(self, patience: int = 10, min_delta: float = 0.0) -> None:
        self.patience = any_count("patience", patience)
        self.min_delta = non_negative("min_delta", min_delta)

    def __repr__(self) -> str:
        return f"EarlyStopping(patience={self.patience}, min_delta={self.min_delta})"

    def on_fit_begin(self, trainer: Trainer) -> None:
        """Stop if the run had been stopped before it was resumed."""
        self._decide(trainer)

    def on_epoch_end(self, trainer: Trainer, epoch: Epoch) -> None:
        """Stop after `patience` epochs without a lower loss."""
        self._decide(trainer)

    def _decide(self, trainer: Trainer) -> None:
        best_loss, best_epoch = inf, 0
        for e in trainer.history.epochs:
            if e.val_loss < best_loss - self.min_delta:
                best_loss, best_epoch = e.val_loss, e.epoch
        if len(trainer.history.epochs) - best_epoch >= self.patience:
            trainer.stop(f"the held-out loss has not fallen for {counted(self.patience, 'epoch')}")


class Checkpointer(Callback):
    """Saves the run before the first epoch, after each `every` epochs, and at the end.

    See `Trainer.save`. If an exception ends `fit` on one of several ranks, the last epochs are not
    saved: the others may not have it.

    Parameters
    ----------
    path : path
        It is replaced in one step, so that it is always complete. When training begins, temporary
        files of killed runs are removed.
    every : int
        The number of epochs between two checkpoints; >= 1.
    extra
        Your data for the file.

    Examples
    --------
    >>> import tempfile
    >>> from fastopt import train
    >>> config = train.RunConfig(data="iris")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = f"{folder}/run.safetensors"
    ...     history = config.build().fit(3, [train.Checkpointer(path)])
    ...     trainer = config.build()
    ...     trainer.resume(path)
    >>> len(trainer.history.epochs)
    3
    """

    def __init__(self, path: str | Path, every: int = 1, extra: Any = None) -> None:
        self.every = integer(1)("every", every)
        self.path = as_path("path", path)
        self.extra = extra
        self._saved = 0

    def __repr__(self) -> str:
        return f"Checkpointer({str(self.path)!r}, every={self.every})"

    def on_fit_begin(self, trainer: Trainer) -> None:
        """Remove the temporary files of killed runs; save a new run."""
        self._saved = len(trainer.history.epochs)
        if trainer.rank == 0:  # the others must not remove what it writes
            remove_leftovers(self.path)
        if not trainer.history.epochs and not trainer.within_epoch:
            self._save(trainer)

    def on_epoch_end(self, trainer: Trainer, epoch: Epoch) -> None:
        """Save after every `every` epochs."""
        if epoch.epoch % self.every == 0:
            self._save(trainer)

    def on_fit_end(self, trainer: Trainer) -> None:
        """Save the last epochs, unless training ended within an epoch."""
        if trainer.failed and trainer.ranks > 1:
            return
        if len(trainer.history.epochs) > self._saved and not trainer.within_epoch:
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        trainer.save(self.path, self.extra)
        self._saved = len(trainer.history.epochs)


class TensorBoardLogger(Callback):
    """Writes losses, scores, the learning rate and the gradient norm for TensorBoard.

    Needs the package ``tensorboardX`` or ``tensorboard``.

    Parameters
    ----------
    folder : path
        The folder of the event files. Each call of ``fit`` adds one.

    Raises
    ------
    ImportError
        If neither package is installed.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = str(as_path("folder", folder))
        self._make = _writer_class()
        self._writer: Any = None

    def __repr__(self) -> str:
        return f"TensorBoardLogger({self.folder!r})"

    def on_fit_begin(self, trainer: Trainer) -> None:
        """Open a file of events."""
        if trainer.rank == 0:
            self._writer = self._make(self.folder)

    def on_epoch_end(self, trainer: Trainer, epoch: Epoch) -> None:
        """Write the numbers of the epoch: ``loss/train``, ``loss/val``, ``lr`` and so on."""
        if self._writer is None:
            return
        for name, value in asdict(epoch).items():
            if name != "epoch" and isfinite(value):
                part, _, what = name.partition("_")
                tag = f"{what}/{part}" if part in ("train", "val") else name
                self._writer.add_scalar(tag, value, epoch.epoch)

    def on_fit_end(self, trainer: Trainer) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()


def _writer_class() -> Any:
    try:
        from tensorboardX import SummaryWriter

        return SummaryWriter
    except ModuleNotFoundError:
        pass
    try:
        from tensorboard.summary import Writer

        return Writer
    except ModuleNotFoundError:
        raise ImportError(
            "TensorBoardLogger needs tensorboardX or tensorboard: pip install tensorboardX"
        ) from None
