"""What every check of the caller's values shares."""

from __future__ import annotations

__all__ = ["NamesError"]


class NamesError(KeyError):
    """Names that are missing or not known; it prints its text, where KeyError prints its repr."""

    def __str__(self) -> str:
        return str(self.args[0]) if len(self.args) == 1 else super().__str__()
