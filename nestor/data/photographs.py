"""Real photographs that travel in packages of wallpapers, cut into squares."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from nestor.data.decode import decode
from nestor.data.listing import Listing

if TYPE_CHECKING:
    from PIL import Image

FOLDER = Path("/usr/share/backgrounds")
PACKAGES = ("mate-backgrounds", "lomiri-wallpapers-16.04")
# Drawings and patterns travel beside them, so that photographs are named one by one.
NAMES = (
    *("mate/nature/YellowFlower.jpg", "Bridge_by_Sander_Klootwijk.jpg", "mate/nature/Aqua.jpg"),
    *("Picture_0B_by_freespace.jpg", "mate/nature/Dune.jpg", "aitzgorri_by_Aitzol_Berasategi.jpg"),
    *("mate/nature/FreshFlower.jpg", "mate/nature/LadyBird.jpg", "Dragonfly_by_Bolly.jpg"),
    *("Picture_1A_by_freespace.jpg", "mate/nature/Garden.jpg", "friends_by_Aitzol_Berasategi.jpg"),
    *("mate/nature/RainDrops.jpg", "life_by_Aitzol_Berasategi.jpg", "sunset_by_Aitzol_Berasategi.jpg"),
    *("mate/nature/TwoWings.jpg", "Wine_by_Jakkub_Mede.jpg", "mate/nature/Storm.jpg"),
    *("seeding_by_Clements_Engelhardt.jpg", "free_by_Peter_Nerlich.jpg", "picosdeeuropa_by_Aitzol_Berasategi.jpg"),
)
# One photograph in so many is held out, with all of its cuts.
_EVERY = 4
# Of the shorter side that is kept of a photograph before it is cut, in pixels: enough for half of it to be 448 pixels.
_SIDE = 896


@dataclass(frozen=True, eq=False)
class Cuts:
    """Squares of photographs, read when they are asked for: of each file nine, three large and six half as large.

    The large ones reach over the photograph's shorter side and lie at both ends and the middle of the longer one; the
    small ones lie in two rows of three.
    """

    files: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.files) * len(PLACES)

    def __getitem__(self, index: int) -> Image.Image:
        number, place = divmod(index, len(PLACES))
        photograph = _opened(self.files[number])
        share, across, down = PLACES[place]
        width, height = photograph.size
        side = round(share * min(width, height))
        left, top = round(across * (width - side)), round(down * (height - side))
        return photograph.crop((left, top, left + side, top + side))


# Share of the shorter side, and where the square lies of all the places across and down that it could.
PLACES = (
    *((1.0, x, x) for x in (0.0, 0.5, 1.0)),
    *((0.5, x, y) for y in (0.1, 0.9) for x in (0.1, 0.5, 0.9)),
)


def photographs(part: Literal["train", "test"]) -> Listing:
    """List squares of the photographs of one part; both parts show different photographs.

    Raises:
        FileNotFoundError: a photograph is missing.
    """
    held_out = part == "test"
    names = [name for number, name in enumerate(NAMES) if (number % _EVERY == _EVERY - 1) == held_out]
    for name in names:
        if not (FOLDER / name).is_file():
            raise FileNotFoundError(
                f"{FOLDER / name} is missing. Install the photographs: apt install {' '.join(PACKAGES)}"
            )
    return Listing(
        items=Cuts(tuple(FOLDER / name for name in names)),
        names=tuple(f"{name} {place}" for name in names for place in range(len(PLACES))),
        trusted=True,
    )


@lru_cache(maxsize=4)
def _opened(file: Path) -> Image.Image:
    """A photograph, smaller where it is large, and kept for the other squares that are cut out of it."""
    photograph = decode(file, at_least=_SIDE)
    scale = _SIDE / min(photograph.size)
    if scale < 1:
        width, height = photograph.size
        photograph = photograph.resize((round(scale * width), round(scale * height)), reducing_gap=2.0)
    return photograph
