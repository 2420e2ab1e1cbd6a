"""MoNE without any training: how much of a pretrained network its nested copy keeps, by nothing but closed forms.

Paper: arXiv 2407.19985, which trains. Command: `nestor prove mone_pretrained`.

DINOv2 ViT-S/14 is folded, rotated into its principal components and nested; tokens of held-out solar cells are compared
with those of the full network, for several shapes of a nested expert and beside token merging, which needs no training
either, at equal multiply-accumulates and at equal milliseconds.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from nestor.data.kept import listed
from nestor.measure.frontier import milliseconds
from nestor.measure.likeness import likeness
from nestor.measure.reach import in_reach
from nestor.measure.repeats import Repeats
from nestor.models.merged import Merged
from nestor.recipes.base import Claim, Proof, in_time
from nestor.surgery.nest import nest, published, shape
from nestor.surgery.start import folded, sizes

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from nestor.measure.likeness import Likeness
    from nestor.models.video import Network
    from nestor.models.vit import ViT

TITLE = "MoNE: Mixture of Nested Experts: Adaptive Processing of Visual Tokens"
ARXIV = "2407.19985"
IDEA = "A slice of a pretrained network is good before any training, if its channels are ordered and its means kept."

MERGING = "token merging"
WANTED = ((0.5, 0.995), (0.33, 0.98))


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the proof is run.

    Attributes:
        sizes: of the cells, in pixels.
        calibration: training cells that the nested networks are fitted to.
        compared: held-out cells whose tokens are compared.
        budgets: at which they are.
        rounds: how often each network is timed; 0 for not at all.
    """

    sizes: tuple[int, ...] = (112, 224)
    calibration: int = 128
    compared: int = 192
    budgets: tuple[float, ...] = (1.0, 0.8, 0.65, 0.5, 0.41, 0.33)
    rounds: int = 15

    @classmethod
    def quick(cls) -> Settings:
        """Few small pictures, and no clock."""
        return cls(sizes=(56,), calibration=16, compared=16, budgets=(1.0, 0.5), rounds=0)


def build(settings: Settings) -> ViT:
    """The nested network of the default shape."""
    return nest(folded("dinov2-small"), _images(settings, settings.sizes[-1]))


def prove(settings: Settings, folder: Path | None = None) -> Proof:
    """Every shape equals the full network at full budget; below it, cosines of the class token and the patches."""
    claims, details = [], {}
    for size in settings.sizes:
        networks, dense = _networks(settings, size), folded("dinov2-small")
        test = listed("elpv", size)[1].limit(settings.compared).cached()
        within = {name: in_reach(each, size, settings.budgets) for name, each in networks.items()}
        found = {name: likeness(each, dense, test, within[name]) for name, each in networks.items()}
        claims += _claims(found, size)
        details[str(size)] = {
            "likeness": {name: {str(b): asdict(at) for b, at in row.items()} for name, row in found.items()}
        }
        if settings.rounds:
            timed = {name: networks[name] for name in ("default", MERGING)}
            took = milliseconds(timed, settings.budgets, size=size, rounds=settings.rounds)
            cosines = {name: {budget: at.token for budget, at in found[name].items()} for name in timed}
            what, pair = f"class token cosine at {size} px", ("default", MERGING)
            claims += in_time(what, cosines["default"], cosines[MERGING], took, pair)
            details[str(size)]["milliseconds"] = took
    return Proof(claims=tuple(claims), details=details)


def curves(details: dict[str, Any]) -> tuple[Repeats, ...]:
    """Cosine of the class token over what was spent, one picture for each size."""

    def lines(rows: dict[str, Any]) -> dict[str, dict[float, list[float]]]:
        return {name: {at["spent"]: [at["token"]] for at in row.values()} for name, row in rows.items()}

    return tuple(
        Repeats(
            title=f"Held-out solar cells at {size} px, nothing trained",
            across="share of the dense network's multiply-accumulates",
            upward="cosine of the class token",
            lines=lines(found["likeness"]),
            levels={},
        )
        for size, found in details.items()
    )


def _images(settings: Settings, size: int) -> Tensor:
    return listed("elpv", size)[0].limit(settings.calibration).stacked()


def _networks(settings: Settings, size: int) -> dict[str, Network]:
    dense, images = folded("dinov2-small"), _images(settings, size)
    own = sizes(dense)
    shapes = {
        "default": shape(*own),
        "default without merging": shape(*own, merge=0.0),
        "three widths": shape(*own, (0.25, 0.5, 1.0)),
        "published": published(*own),
    }
    nested: dict[str, Network] = {name: nest(dense, images, nest=form) for name, form in shapes.items()}
    return nested | {MERGING: Merged(dense)}


def _claims(found: dict[str, dict[float, Likeness]], size: int) -> list[Claim]:
    claims = []
    for name, row in found.items():
        text = f"{name}: relative error at full budget, {size} px"
        claims.append(Claim(text=text, left=row[1.0].error, relation="<=", right=2e-5, exact=True))
    for budget, least in WANTED if size == 224 else ():
        text, at = f"class token cosine at {budget}, {size} px", found["default"][budget]
        claims.append(Claim(text=text, left=at.token, relation=">=", right=least))
    for budget in (b for b in found["default"] if b < 1 and b in found[MERGING]):
        for part, of in (("token", "class token"), ("patch", "patches")):
            mine, theirs = (getattr(found[name][budget], part) for name in ("default", MERGING))
            text = f"cosine of the {of} at {budget}, {size} px, default against {MERGING}"
            claims.append(Claim(text=text, left=mine, relation=">=", right=theirs))
    return claims
