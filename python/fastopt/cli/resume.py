"""The run that ``fastopt train --resume`` continues."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import fastopt as fo
from fastopt.train import BUNDLED, ConfigError, Data, DataError, RunConfig

# The fields that a resumed run may have anew; all but the epochs describe the data.
ANEW = {"epochs", "data", "target", "drop", "delimiter", "header"}


def facts_to_save(config: RunConfig) -> dict[str, Any]:
    """Return the fields of `config` for a checkpoint that is resumed from any folder."""
    place = {} if config.data in BUNDLED else {"data": str(Path(config.data).absolute())}
    return asdict(config) | place


def saved_config(path: Path, config: RunConfig, given: Set[str]) -> RunConfig:
    """Return the configuration of the run in the checkpoint `path`.

    The fields `given` of `config` must not contradict it; a run without a schedule may have more
    epochs. The data may have another place, and their columns other words, such as a name in place
    of a number: `Trainer.resume` compares the values.

    Raises
    ------
    CheckpointError
        If there is no such run.
    ConfigError, DataError
        If a field contradicts it, or the data are no longer there.
    """
    try:
        saved = RunConfig(**fo.load(path).extra["extra"])
    except fo.CheckpointError:
        raise
    except FileNotFoundError:
        raise fo.CheckpointError(f"there is no {path} to resume; begin with --checkpoint") from None
    except OSError as error:
        raise fo.CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise fo.CheckpointError(f"{path} is not a checkpoint of fastopt train") from error
    wanted, before = asdict(config.resolved()), asdict(saved.resolved())
    for name in given & wanted.keys():
        if wanted[name] == before[name] or name in ANEW:
            continue
        if before[name] is None:
            raise ConfigError(name, "was not given in the run to resume; leave it out")
        raise ConfigError(
            name, f"was {before[name]} in the run to resume, not {wanted[name]}; leave it out"
        )
    if "epochs" in given and config.epochs != saved.epochs and saved.schedule != "constant":
        raise ConfigError(
            "epochs", f"must stay {saved.epochs}: the schedule {saved.schedule} is made for them"
        )
    if "data" not in given and saved.data not in BUNDLED and not Path(saved.data).exists():
        raise DataError(
            f"the data of the run to resume are not at {saved.data}; give their place with --data"
        )
    return replace(saved, **{name: getattr(config, name) for name in given & ANEW})


def check_shapes(path: Path, config: RunConfig, data: Data) -> None:
    """Raise CheckpointError unless the arrays in `path` have the shapes of the model of `config`.

    They are compared before the model is made: a damaged configuration may describe a huge one.
    """
    widths = [data.features, *config.hidden, data.outputs]
    shapes: dict[str, tuple[int, ...]] = {}
    for i, (n_in, n_out) in enumerate(pairwise(widths)):
        shapes |= {f"{i}.weight": (n_out, n_in), f"{i}.bias": (n_out,)}
    saved = fo.load(path).params or {}
    if {name: array.shape for name, array in saved.items()} != shapes:
        raise fo.CheckpointError(
            f"the shapes of the model in {path} are not those of {'-'.join(map(str, widths))}: "
            "either the data are not those of that run, or the checkpoint is damaged"
        )
