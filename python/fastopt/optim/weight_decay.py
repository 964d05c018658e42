"""Parameter groups that exclude biases and norms from weight decay."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from fastopt._checks import short_repr
from fastopt._structure import name_params
from fastopt._types import Arrays, FloatArray, Group


def decay_groups(
    params: Arrays, weight_decay: float = 0.01, *, exclude: str | Iterable[str] = ()
) -> list[Group]:
    """Split parameters into a group with weight decay and one without.

    Arrays with two or more dimensions decay. Vectors and scalars, such as biases and the scales of
    norms, do not.

    Parameters
    ----------
    params : mapping or sequence
        Arrays by name, or a sequence of arrays, which get the names "0", "1", ...
    weight_decay : float
        The weight decay of the first group.
    exclude : str or iterable of str
        Names of other parameters that do not decay, such as embeddings, or shell-style patterns
        (``*``, ``?``, ``[...]``). Case matters. Each must match a name.

    Returns
    -------
    list of dict
        Groups for an optimizer: each has ``"params"``, a mapping name -> array, and
        ``"weight_decay"``. A group without parameters is left out. The step of the optimizer takes
        the gradients as one mapping by name.

    References
    ----------
    He et al., "Bag of tricks for image classification with convolutional neural networks", CVPR
    2019, section 3.1: no bias decay.

    Examples
    --------
    >>> import numpy as np, fastopt as fo
    >>> params = {"embed.weight": np.ones((9, 4)), "weight": np.ones((4, 3)), "bias": np.ones(3)}
    >>> for group in fo.decay_groups(params, 0.1, exclude="embed*"):
    ...     print(group["weight_decay"], *group["params"])
    0.1 weight
    0.0 embed.weight bias
    >>> opt = fo.AdamW(fo.decay_groups(params), lr=0.1)
    >>> info = opt.step({name: np.ones_like(array) for name, array in params.items()})
    """
    names, arrays, _ = name_params(params, first=0)
    patterns = [exclude] if isinstance(exclude, str) else exclude
    if not isinstance(patterns, Iterable):
        raise TypeError(f"exclude must be a string or a list of them, not {short_repr(exclude)}")
    patterns = list(patterns)
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(f"exclude must hold strings, not {short_repr(pattern)}")
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(
                f"exclude: {pattern!r} matches no parameter; the names are {', '.join(names)}"
            )
    decaying: dict[str, FloatArray] = {}
    others: dict[str, FloatArray] = {}
    for name, array in zip(names, arrays, strict=True):
        if isinstance(array, Mapping):
            raise TypeError(
                "params must be a mapping name -> array or a sequence of arrays, not a list of "
                "groups; split the params of each group"
            )
        excluded = any(fnmatchcase(name, pattern) for pattern in patterns)
        decays = getattr(array, "ndim", 0) >= 2 and not excluded
        (decaying if decays else others)[name] = array
    groups: list[Group] = [
        {"params": decaying, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
