"""What can watch a training run, and end it: logs, early stopping, a look for overfitting."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from math import inf, isfinite, isnan
from pathlib import Path
from statistics import median
from typing import IO, TYPE_CHECKING, Any

from fastopt._files import remove_leftovers
from fastopt.train import checks
from fastopt.train.history import DIVERGED, Epoch

if TYPE_CHECKING:
    from fastopt.train.loop import Trainer


class Callback:
    """What `Trainer.fit` calls while it trains; override what you need.

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
        """Before the first epoch of this call of ``fit``."""

    def on_batch_end(self, trainer: Trainer, samples: int, loss: float) -> None:
        """After each batch, with its size and its mean loss."""

    def on_epoch_end(self, trainer: Trainer, epoch: Epoch) -> None:
        """After each epoch has been evaluated and put into the history."""

    def on_fit_end(self, trainer: Trainer) -> None:
        """At the end, also if an exception (Ctrl-C too) ends it."""


class Divergence(Callback):
    """Ends a run whose loss has grown, after its second epoch or later.

    That is so if the training loss is more than ten times the held-out loss before training, and
    the held-out loss is higher than then too.

    `Trainer.fit` itself ends a run whose loss is not finite; this is for losses that stay finite.
    The first epoch may end with any loss: a good learning rate may begin with a leap.

    Parameters
    ----------
    before : float, optional
        The held-out loss before training. Without it, that of the model as ``fit`` begins; a run
        that is resumed needs it.

    Raises
    ------
    TypeError, ValueError
        If `before` is no number, or NaN.

    Examples
    --------
    >>> from fastopt import train
    >>> trainer = train.RunConfig(data="digits", lr=100.0).build()
    >>> trainer.fit(10, [train.Divergence()]).diverged
    True
    """

    def __init__(self, before: float | None = None) -> None:
        if before is not None:
            before = checks.number("before", before, "a number", lambda value: not isnan(value))
        self._before = before

    def on_fit_begin(self, trainer: Trainer) -> None:
        """Take the loss before training as the measure."""
        self._measure = trainer.evaluate()[0] if self._before is None else self._before

    def on_epoch_end(self, trainer: Trainer, epoch: Epoch) -> None:
        """Stop if the training loss is ten times it and the held-out loss is above it."""
        grew = epoch.train_loss > 10 * self._measure and epoch.val_loss > self._measure
        if epoch.epoch > 1 and grew:
            trainer.stop(DIVERGED)


class CSVLogger(Callback):
    """Writes a line for each epoch into a CSV file, as it ends.

    A run that is continued writes its earlier epochs again, so that the file always holds all.

    Parameters
    ----------
    path : path
        What it holds is replaced when there is an epoch to write, not before. The columns are the
        fields of `Epoch`.

    Raises
    ------
    TypeError
        If `path` is no path.
    OSError
        From ``fit``, if the file cannot be written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = checks.path("path", path)
        self._file: IO[str] | None = None

    def __repr__(self) -> str:
        return f"CSVLogger({str(self.path)!r})"

    def on_fit_begin(self, trainer: Trainer) -> None:
        """Open the file, and write the epochs that there are."""
        self._file = self.path.open("a", newline="", encoding="utf-8")
        self._started = False
        if trainer.history.epochs:
            self._write(trainer.history.epochs)

    def on_epoch_end(self, trainer: Trainer, epoch: Epoch) -> None:
        """Add a line."""
        self._write([epoch])

    def on_fit_end(self, trainer: Trainer) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _write(self, epochs: Sequence[Epoch]) -> None:
        assert self._file is not None
        if not self._started and self._file.seekable() and self._file.tell():
            self._file.truncate(0)
        write_epochs(self._file, epochs, head=not self._started)
        self._started = True
        self._file.flush()


def write_epochs(file: IO[str], epochs: Iterable[Epoch], *, head: bool = True) -> None:
    """Write epochs as lines of CSV."""
    writer = csv.DictWriter(file, [f.name for f in fields(Epoch)], lineterminator="\n")
    if head:
        writer.writeheader()
    writer.writerows(asdict(epoch) for epoch in epochs)


class EarlyStopping(Callback):
    """Ends training when the held-out loss has not fallen for some epochs.

    It looks at the history alone, so it decides the same in a run that was interrupted and
    continued.

    Parameters
    ----------
    patience : int
        Epochs without a new lowest held-out loss after which to stop; at least 1.
    min_delta : float
        A loss counts as lower if it is so by more than this; at least 0.

    Raises
    ------
    TypeError, ValueError
        If an option cannot be used.

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
        self.patience = checks.whole("patience", patience)
        self.min_delta = checks.number(
            "min_delta", min_delta, "finite and >= 0", lambda x: 0 <= x < inf
        )

    def __repr__(self) -> str:
        return f"EarlyStopping(patience={self.patience}, min_delta={self.min_delta})"

    def on_fit_begin(self, trainer: Trainer) -> None:
        """Stop if the run that is continued had been stopped."""
        self._decide(trainer)

    def on_epoch_end(self, trainer: Trainer, epoch: Epoch) -> None:
        """Stop if it has been long enough."""
        self._decide(trainer)

    def _decide(self, trainer: Trainer) -> None:
        best_loss, best_epoch = inf, 0
        for e in trainer.history.epochs:
            if e.val_loss < best_loss - self.min_delta:
                best_loss, best_epoch = e.val_loss, e.epoch
        if len(trainer.history.epochs) - best_epoch >= self.patience:
            trainer.stop(
                f"the held-out loss has not fallen for {checks.counted(self.patience, 'epoch')}"
            )


class Checkpointer(Callback):
    """Saves the run before the first epoch, after every one or every few, and at the end.

    See `Trainer.save`.

    Parameters
    ----------
    path : path
        Replaced each time, at once: there is always a whole checkpoint. What earlier runs that were
        killed while saving have left beside it is removed when training begins.
    every : int
        Epochs; at least 1.
    extra
        Something of your own that goes into the file.

    Raises
    ------
    TypeError, ValueError
        If `every` cannot be used.

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
        self.every = checks.whole("every", every)
        self.path = checks.path("path", path)
        self.extra = extra
        self._saved = 0

    def __repr__(self) -> str:
        return f"Checkpointer({str(self.path)!r}, every={self.every})"

    def on_fit_begin(self, trainer: Trainer) -> None:
        """Remove what was left by a run that was killed while saving; save a new run."""
        self._saved = len(trainer.history.epochs)
        remove_leftovers(self.path)
        if not trainer.history.epochs and not trainer.within_epoch:
            self._save(trainer)

    def on_epoch_end(self, trainer: Trainer, epoch: Epoch) -> None:
        """Save if it is time."""
        if epoch.epoch % self.every == 0:
            self._save(trainer)

    def on_fit_end(self, trainer: Trainer) -> None:
        """Save what is not saved yet, unless training ended within an epoch."""
        if len(trainer.history.epochs) > self._saved and not trainer.within_epoch:
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        trainer.save(self.path, self.extra)
        self._saved = len(trainer.history.epochs)


@dataclass(frozen=True)
class Overfitting:
    """The held-out loss has turned while the training loss fell on."""

    epoch: int  # where the held-out loss was lowest
    lowest: float  # the held-out loss there
    latest: float  # and at the end; both are medians of `WINDOW` epochs

    def __str__(self) -> str:
        return (
            f"overfitting: the held-out loss was lowest around epoch {self.epoch} and has risen "
            f"since, from {self.lowest:.4g} to {self.latest:.4g} (medians of {WINDOW} epochs), "
            "while the training loss fell on"
        )


WINDOW = 5  # epochs whose median stands for the one in their middle


def find_overfitting(epochs: Sequence[Epoch], rise: float = 0.05) -> Overfitting | None:
    """Return where the held-out loss turned, or None if it did not.

    Losses are taken as running medians of five epochs, so that an odd one neither makes nor hides
    a turn. The held-out loss has turned if, since its lowest point,

    - it has risen by more than the share `rise`,
    - and by more than three standard deviations of its noise, which is estimated from the median
      difference of one epoch and the next,
    - while the training loss fell.

    Parameters
    ----------
    epochs : sequence of Epoch
    rise : float
        At least 0.

    Examples
    --------
    >>> from fastopt import train
    >>> trainer = train.RunConfig(data="diabetes", dropout=0, lr=0.01).build()
    >>> found = train.find_overfitting(trainer.fit(60).epochs)
    >>> found is not None and found.epoch < 30
    True
    """
    rise = checks.number("rise", rise, "finite and >= 0", lambda x: 0 <= x < inf)
    if len(epochs) < 2 * WINDOW or not all(isfinite(e.train_loss + e.val_loss) for e in epochs):
        return None
    raw = [e.val_loss for e in epochs]
    val, train = _smooth(raw), _smooth([e.train_loss for e in epochs])
    at = val.index(min(val))
    # For normal noise, the median of |a - b| is 0.954 standard deviations.
    noise = median(abs(b - a) for a, b in pairwise(raw)) / 0.954
    if val[-1] - val[at] > max(rise * abs(val[at]), 3 * noise) and train[-1] < train[at]:
        return Overfitting(epochs[at + WINDOW // 2].epoch, val[at], val[-1])
    return None


def _smooth(values: Sequence[float]) -> list[float]:
    """Return the medians of all `WINDOW` values in a row."""
    return [median(values[i : i + WINDOW]) for i in range(len(values) - WINDOW + 1)]


class TensorBoardLogger(Callback):
    """Writes losses, scores, the learning rate and the gradient norm for TensorBoard.

    Needs the package ``tensorboardX`` or ``tensorboard``.

    Parameters
    ----------
    folder : path
        Of the event files; each call of ``fit`` adds one.

    Raises
    ------
    ImportError
        If neither package is installed.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = str(checks.path("folder", folder))
        self._make = _writer_class()
        self._writer: Any = None

    def __repr__(self) -> str:
        return f"TensorBoardLogger({self.folder!r})"

    def on_fit_begin(self, trainer: Trainer) -> None:
        """Open a file of events."""
        self._writer = self._make(self.folder)

    def on_epoch_end(self, trainer: Trainer, epoch: Epoch) -> None:
        """Write the epoch's figures: ``loss/train``, ``loss/val``, ``lr`` and so on."""
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
