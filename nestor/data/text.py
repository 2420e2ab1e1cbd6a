"""English prose that every Python has: the reference of the language, as letters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

# One topic in so many is held out.
_EVERY = 10


def reference() -> tuple[str, str]:
    """The topics of Python's own help, about half a million letters, to learn from and, one in ten, to be judged by."""
    from pydoc_data.topics import topics

    texts = [topics[name] for name in sorted(topics)]
    return _joined(text for i, text in enumerate(texts) if i % _EVERY), _joined(texts[::_EVERY])


def windows(text: str, length: int) -> Tensor:
    """(N, length + 1): pieces of a text as numbers of letters below 128, each beginning with the end of the last one.

    What is no ASCII counts as a question mark.

    Raises:
        ValueError: the text has not one piece.
    """
    if length < 1 or len(text) <= length:
        raise ValueError(f"a piece needs {length} letters, at least one, and one more; got a text of {len(text)}.")
    letters = torch.tensor(list(text.encode("ascii", "replace")))
    return letters.unfold(0, length + 1, length)


def _joined(texts: Iterable[str]) -> str:
    return "\n\n".join(text.strip() for text in texts)
