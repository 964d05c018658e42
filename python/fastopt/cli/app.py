"""The commands, their options and what they print; the work is done in `fastopt.train`."""

from __future__ import annotations

import math
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any, NoReturn

import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import fastopt as fo
from fastopt import train as ft

app = typer.Typer(
    help="Train models from NumPy with fastopt's optimizers and losses.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console(width=None if sys.stdout.isatty() else 140)  # wide tables in logs


class OptimizerName(str, Enum):
    """The optimizers of the command line."""

    sgd = "sgd"
    momentum = "momentum"
    rmsprop = "rmsprop"
    adam = "adam"
    adamw = "adamw"


# The class, its options and the learning rate and weight decay to start from.
OPTIMIZERS: dict[
    OptimizerName, tuple[Callable[..., fo.Optimizer], dict[str, Any], float, float]
] = {
    OptimizerName.sgd: (fo.SGD, {}, 0.1, 0.0),
    OptimizerName.momentum: (fo.SGD, {"momentum": 0.9}, 0.02, 0.0),
    OptimizerName.rmsprop: (fo.RMSprop, {}, 1e-3, 0.0),
    OptimizerName.adam: (fo.Adam, {}, 1e-3, 0.0),
    OptimizerName.adamw: (fo.AdamW, {}, 1e-3, 1e-2),
}


LR_DEFAULTS = "0.1 sgd, 0.02 momentum, 0.001 others"


def fail(message: object) -> NoReturn:
    """Print a one-line error and exit with code 2."""
    Console(stderr=True, soft_wrap=True, highlight=False).print(
        f"fastopt: error: {message}", style="bold red", markup=False
    )
    raise typer.Exit(2)


def parse_hidden(text: str) -> list[int]:
    """Return the widths in a text such as ``128,64``; ``none`` is no hidden layer."""
    if text.strip().lower() == "none":
        return []
    try:
        widths = [int(part) for part in text.split(",")]
    except ValueError:
        widths = [0]
    if min(widths) < 1:
        fail(f"--hidden must be widths such as 128,64, or none, not {text!r}")
    return widths


@contextmanager
def one_line_errors(folder: Path) -> Iterator[None]:
    """Turn what the user can mend into a message without a traceback."""
    try:
        yield
    except ft.DataError as error:
        fail(error)
    except OSError as error:
        fail(f"cannot write into {folder}: {error.strerror or error}; choose another --output")


def print_version(wanted: bool) -> None:
    """Print the version and exit, if that is wanted."""
    if wanted:
        console.print(f"fastopt {fo.__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=print_version, is_eager=True),
    ] = False,
) -> None:
    """Train models from NumPy with fastopt's optimizers and losses."""


@app.command()
def info() -> None:
    """Print versions, instruction sets and threads: what a report of a problem needs."""
    say(fo.show_config())


@app.command()
def train(
    data: Annotated[
        Path | None,
        typer.Option(
            help=".npz (X, y), .csv (label last) or folder of MNIST's four idx files.",
            show_default="scikit-learn's digits",
        ),
    ] = None,
    optimizer: Annotated[
        OptimizerName,
        typer.Option(help="How to step; momentum is SGD's 0.9.", case_sensitive=False),
    ] = OptimizerName.adamw,
    lr: Annotated[
        float | None,
        typer.Option(help="Learning rate.", min=0.0, show_default=LR_DEFAULTS),
    ] = None,
    weight_decay: Annotated[
        float | None,
        typer.Option(help="Weight decay.", min=0.0, show_default="0.01 adamw, 0 others"),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Samples in a batch.", min=1)] = 64,
    epochs: Annotated[int, typer.Option(help="Passes over the training data.", min=1)] = 30,
    hidden: Annotated[
        str, typer.Option(help="Widths of the hidden layers, such as 128,64, or none.")
    ] = "128,64",
    dropout: Annotated[float, typer.Option(help="Probability in [0, 1).", min=0.0)] = 0.1,
    seed: Annotated[
        int, typer.Option(help="Of split, weights, order, dropout.", min=0, max=2**32 - 1)
    ] = 0,
    threads: Annotated[
        int | None,
        typer.Option(help="Threads of fastopt's kernels.", min=1, max=4096, show_default="all"),
    ] = None,
    output: Annotated[
        Path, typer.Option(help="Folder for loss.png, metrics.csv and run.json.")
    ] = Path("fastopt-run"),
) -> None:
    """Train a small network on real data, show progress, print the result, write the picture."""
    options: dict[str, Any] = locals() | {"optimizer": optimizer.value}
    kind, settings, default_lr, default_decay = OPTIMIZERS[optimizer]
    options["lr"] = lr = default_lr if lr is None else lr
    options["weight_decay"] = weight_decay = default_decay if weight_decay is None else weight_decay
    widths = parse_hidden(hidden)
    if not dropout < 1:
        fail(f"--dropout must be in [0, 1), not {dropout}")
    if threads is not None:
        fo.set_num_threads(threads)
    with one_line_errors(output):
        dataset = ft.load_data(data, seed)
        ft.check_folder(output)
    try:
        model = ft.MLP([dataset.features, *widths, dataset.classes], dropout, (seed, 1))
        stepper = kind(model.params, lr=lr, weight_decay=weight_decay, **settings)
    except ValueError as error:
        fail(error)
    except MemoryError:
        fail(f"there is not enough memory for --hidden {hidden}")
    name = type(stepper).__name__ + "".join(f" with {k} {v:g}" for k, v in settings.items())
    say(
        f"data       {dataset}\n"
        f"model      {model}\n"
        f"optimizer  {name}, lr {lr:g}, weight decay {weight_decay:g}; batches of {batch_size}\n"
        f"kernels    {fo.active_isa()}, {fo.get_num_threads()} threads"
    )
    history = ft.History()
    code = 0
    try:
        run_with_progress(model, dataset, stepper, history, epochs, batch_size, seed)
    except KeyboardInterrupt:
        say(f"interrupted after epoch {len(history.epochs)} of {epochs}")
        code = 130
    if not history.epochs:
        raise typer.Exit(code)
    if history.diverged:
        say(f"the loss is not finite since epoch {len(history.epochs)}: try a smaller --lr")
        code = 1
    console.print(result_table(history))
    values = {
        key: value if value is None or isinstance(value, (int, float)) else str(value)
        for key, value in options.items()
    }
    facts = {
        "title": f"{name}, lr {lr:g}, on {dataset.name}",
        "command": "train",
        "options": values,
        "optimizer": {"class": type(stepper).__name__} | stepper.defaults,
        "data": repr(dataset),
        "model": repr(model),
        "versions": {
            "fastopt": fo.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "instruction_set": fo.active_isa(),
        "threads": fo.get_num_threads(),
    }
    with one_line_errors(output):
        paths = ft.write_report(output, history, facts)
    say("wrote " + ", ".join(map(str, paths)))
    raise typer.Exit(code)


def say(text: str) -> None:
    """Print plain text."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


class BenchName(str, Enum):
    """What ``fastopt bench`` measures."""

    optimizers = "optimizers"
    losses = "losses"
    accuracy = "accuracy"


@app.command()
def bench(
    what: Annotated[
        BenchName, typer.Argument(help="What to measure.", case_sensitive=False)
    ] = BenchName.optimizers,
    largest: Annotated[
        int, typer.Option(help="Leave out cases of more parameters or logits than this.", min=1)
    ] = 1 << 27,
    seconds: Annotated[float, typer.Option(help="For each case, about.", min=0.01)] = 2.0,
    threads: Annotated[
        int | None,
        typer.Option(help="Of fastopt, torch and DeepSpeed.", min=1, max=4096, show_default="all"),
    ] = None,
    output: Annotated[
        Path, typer.Option(help="Folder for the results: JSON, Markdown, a picture.")
    ] = Path("fastopt-bench"),
) -> None:
    """Time every optimizer, or loss, beside its peers on this machine; or compare their errors."""
    from fastopt import benchmark

    if threads is not None:
        fo.set_num_threads(threads)
    with one_line_errors(output):
        ft.check_folder(output)
    if what is BenchName.accuracy:
        bench_accuracy(output)
        return
    suite = benchmark.SUITES[what.value]
    cases = [case for case in suite.cases if case.elements <= largest]
    if not cases:
        smallest = min(case.elements for case in suite.cases)
        fail(f"no case is as small as {largest}; --largest must be at least {smallest}")
    say(fo.show_config())
    peers = [peer for peer in suite.peers if peer != "reference"]
    if len(peers) == 1:
        say("no peer is installed (torch, DeepSpeed, optax): beside the NumPy reference alone")
    peers.append("reference")
    bandwidth = benchmark.measure_bandwidth(min(256, max(64, largest >> 18)) << 20)
    say(f"memory     copy {bandwidth.copy:.1f} GB/s, scale in place {bandwidth.scale:.1f} GB/s")
    results = []
    # After the first time every library has started its threads.
    benchmark.measure_case(suite, cases[0], peers, seconds)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        for case in progress.track(cases, description="timing"):
            # The reference takes seconds where the kernels take milliseconds.
            asked = peers if case.elements <= 1 << 20 else peers[:-1]
            results.append(benchmark.measure_case(suite, case, asked, seconds))
    others = peers[1:]
    console.print(
        wide_table(
            f"Time of one {suite.unit}; for each peer, its time over ours",
            benchmark.table_head(suite, others),
            [benchmark.table_row(suite, bandwidth, result, others) for result in results],
        )
    )
    for result in results:
        if result.between:
            times = (f"{peer} {seconds * 1e6:,.0f}" for peer, seconds in result.between.items())
            say(f"{result.case}: us of the matmul beside {', '.join(times)}")
    with one_line_errors(output):
        paths = benchmark.write_results(output, suite, bandwidth, results, others)
    say("wrote " + ", ".join(map(str, paths)))


def bench_accuracy(output: Path) -> None:
    """Print the errors of the losses beside their peers', and write them."""
    from fastopt.benchmark import accuracy

    say(fo.show_config())
    results = []
    with Progress(console=console, disable=not console.is_terminal) as progress:
        for case in progress.track(accuracy.CASES, description="comparing"):
            results.append(accuracy.measure_errors(case))
    rows = accuracy.table_rows(results)
    console.print(wide_table(accuracy.TITLE, accuracy.table_head(), rows))
    with one_line_errors(output):
        paths = accuracy.write_errors(output, results)
    say("wrote " + ", ".join(map(str, paths)))


def wide_table(title: str, head: list[str], rows: list[list[str]]) -> Table:
    """Return a table of names and numbers."""
    table = Table(title=title, title_justify="left")
    table.add_column(head[0], no_wrap=True)
    for name in head[1:]:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*row)
    return table


def run_with_progress(
    model: ft.MLP,
    data: ft.Data,
    optimizer: fo.Optimizer,
    history: ft.History,
    epochs: int,
    batch_size: int,
    seed: int,
) -> None:
    """Train with a live line of loss, accuracy and speed; plain lines if this is no terminal."""
    progress = Progress(
        TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
        BarColumn(),
        TextColumn("loss {task.fields[loss]:.4f}  held-out accuracy {task.fields[accuracy]:.2%}"),
        TextColumn("{task.fields[speed]:,.0f} samples/s"),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    task = progress.add_task(
        "",
        total=epochs * len(data.y_train),
        epochs=epochs,
        epoch=1,
        loss=math.nan,
        accuracy=0.0,
        speed=0.0,
    )
    every = max(1, epochs // 10)
    samples, shown_samples, shown_at = 0, 0, perf_counter()

    def on_batch(size: int, loss: float) -> None:
        nonlocal samples, shown_samples, shown_at
        samples += size
        elapsed = perf_counter() - shown_at
        if elapsed > 0.1:
            speed = (samples - shown_samples) / elapsed
            progress.update(task, completed=samples, loss=loss, speed=speed)
            shown_samples, shown_at = samples, perf_counter()

    def on_epoch(epoch: ft.Epoch) -> None:
        progress.update(
            task,
            completed=samples,
            epoch=min(epoch.epoch + 1, epochs),
            loss=epoch.train_loss,
            accuracy=epoch.val_accuracy,
            speed=epoch.samples_per_second,
        )
        if not console.is_terminal and (epoch.epoch % every == 0 or epoch.epoch == epochs):
            say(
                f"epoch {epoch.epoch:>4}/{epochs}  loss {epoch.train_loss:.4f}  "
                f"held-out loss {epoch.val_loss:.4f}  accuracy {epoch.val_accuracy:.2%}  "
                f"{epoch.samples_per_second:,.0f} samples/s"
            )

    with progress:
        ft.fit(
            model,
            data,
            optimizer,
            fo.CrossEntropyLoss(),
            epochs=epochs,
            batch_size=batch_size,
            seed=seed,
            history=history,
            on_epoch=on_epoch,
            on_batch=on_batch,
        )


def result_table(history: ft.History) -> Table:
    """Return the table that a run ends with."""
    final, best, seconds = history.epochs[-1], history.best, history.seconds
    table = Table(title="Result", title_justify="left", show_header=False)
    table.add_column(justify="left")
    table.add_column(justify="right")
    table.add_row("final accuracy on held-out data", f"{final.val_accuracy:.2%}")
    table.add_row("best accuracy on held-out data", f"{best.val_accuracy:.2%} (epoch {best.epoch})")
    table.add_row(
        "final loss, training / held-out", f"{final.train_loss:.4f} / {final.val_loss:.4f}"
    )
    table.add_section()
    for name, value in (
        ("time in the optimizer step", seconds.step),
        ("time in the loss and its gradient", seconds.loss),
        ("time in forward and backward", seconds.forward + seconds.backward),
        ("time in evaluation", seconds.evaluation),
        ("whole training", seconds.total),
    ):
        share = value / seconds.total if seconds.total else 0.0
        table.add_row(name, f"{value:.3f} s ({share:.1%})")
    return table
