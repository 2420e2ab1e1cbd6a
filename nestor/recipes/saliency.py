"""Dense prediction: the saliency maps of an elastic network, on real photographs.

No paper: Nestor's own. Command: `nestor prove saliency`.

The packaged DINOv2 ViT-S/14 comes with a head that tells how salient each pixel is. The backbone is made elastic, the
head stays as it is, and the maps are compared with those of the full network on held-out photographs, budget by budget,
beside token merging, token pruning and one width for all patches: as they are, and after each was taught by the full
network's maps and patch tokens for as many steps. Budgets count the head, which no budget makes cheaper.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from nestor.data import Augment
from nestor.data.kept import decoded
from nestor.measure.draw_maps import draw_maps, over_spent, spread
from nestor.measure.maps import MapLikeness, map_likeness
from nestor.models.mapped import Mapped
from nestor.models.pretrained import read, read_saliency
from nestor.recipes.base import Claim, Proof
from nestor.surgery.fold import fold
from nestor.surgery.maps import elastic_maps
from nestor.training.fit import fit
from nestor.training.parallel import side_by_side
from nestor.training.schedule import Sampled
from nestor.training.settings import Distil, Fit

if TYPE_CHECKING:
    from pathlib import Path

    from nestor.data import Pictures
    from nestor.measure.repeats import Repeats

TITLE = "Dense prediction at any budget: saliency maps of an elastic DINOv2"
ARXIV = ""
IDEA = "Nested tokens keep their places, so that a head for maps reads them as it reads the full network's."
RIVALS = ("merging", "pruning", "uniform width")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the proof is run.

    Attributes:
        source: of the pictures, as in `nestor.data.load_splits`.
        size: of the pictures, in pixels.
        epochs, rate, batch, seed: of each network's training; 0 epochs for none.
        calibration: number of training pictures that the nested networks are fitted to in closed form.
        pictures: of each part; None takes all.
        budgets: of the comparison, the first one 1.
        shown: pictures on the sheet.
    """

    source: str = "photographs"
    size: int = 224
    epochs: int = 6
    rate: float = 3e-4
    batch: int = 8
    seed: int = 0
    calibration: int = 64
    pictures: int | None = None
    budgets: tuple[float, ...] = (1.0, 0.8, 0.65, 0.5, 0.45)
    shown: int = 5

    @classmethod
    def quick(cls) -> Settings:
        """No training, few pictures: the exact claims only."""
        return cls(source="elpv", size=56, epochs=0, calibration=8, pictures=8, budgets=(1.0, 0.6), shown=2)


def build(settings: Settings) -> Mapped:
    """The nested network of maps before any training."""
    return _start(settings)[1]["nested"]


def prove(settings: Settings, folder: Path | None = None) -> Proof:
    """Exactness at full budget, then likeness of the maps over budgets, untrained and trained."""
    (train, test), (full, untrained) = _parts(settings), _start(settings)
    networks = {f"{name}, untrained": network for name, network in untrained.items()}
    if settings.epochs:
        taught = side_by_side(partial(_taught, settings, folder), list(untrained), what="Teaching")
        networks |= dict(zip(untrained, taught, strict=True))
    found = map_likeness(networks, full, test, settings.budgets)
    details = {name: {str(budget): asdict(at) for budget, at in row.items()} for name, row in found.items()}
    shown = networks.get("nested", networks["nested, untrained"])
    return Proof(
        claims=(*_exact(found), *(_trained(found) if settings.epochs else ())),
        details={"maps": details, "pictures": {"training": len(train), "held out": len(test)}},
        figures={"maps": draw_maps(shown, full, spread(test, settings.shown), settings.budgets[1:])},
    )


def curves(details: dict[str, Any]) -> tuple[Repeats, Repeats]:
    """Correlation and difference of the maps over what was spent."""
    names = ("nested", *RIVALS)
    title = f"Saliency maps, {details['pictures']['held out']} held-out pictures"
    draw = partial(over_spent, details["maps"], (*names, *(f"{name}, untrained" for name in names)), title=title)
    return (
        draw(what="correlation", told="correlation with the full map"),
        draw(what="difference", told="mean absolute difference from the full map"),
    )


def _parts(settings: Settings) -> tuple[Pictures, Pictures]:
    return decoded(settings.source, settings.size, settings.pictures)


def _start(settings: Settings) -> tuple[Mapped, dict[str, Mapped]]:
    """The full network, and elastic ones by name, before any training."""
    # The head is not trained: what it reads shall stay what it was made for.
    full = Mapped(fold(read("dinov2-small")), read_saliency().requires_grad_(False))
    return full, elastic_maps(full, _parts(settings)[0].limit(settings.calibration).stacked())


def _taught(settings: Settings, folder: Path | None, name: str) -> Mapped:
    (train, _), (full, untrained) = _parts(settings), _start(settings)
    how = Fit(epochs=settings.epochs, batch=settings.batch, rate=settings.rate, seed=settings.seed, precision="bf16")
    budgets, flip = Sampled(low=min(settings.budgets), high=0.8), Augment(flip=True)
    loss = Distil(logits=1.0, temperature=1.0, prefix=0.0, patches=1.0)
    how = replace(how, budgets=budgets, augment=flip, loss=loss)
    return fit(untrained[name], train, how, teacher=full, out=folder and folder / name)


def _exact(found: dict[str, dict[float, MapLikeness]]) -> list[Claim]:
    claims = []
    for name, row in found.items():
        if name.endswith("untrained"):
            text = f"{name}: mean absolute difference from the full network's map at full budget"
            claims.append(Claim(text=text, left=row[1.0].difference, relation="<=", right=1e-5, exact=True))
        over = max(at.spent - budget for budget, at in row.items())
        claims.append(Claim(text=f"{name}: spent above budget", left=over, relation="<=", right=1e-9, exact=True))
    return claims


def _trained(found: dict[str, dict[float, MapLikeness]]) -> list[Claim]:
    rows, wanted = [], {0.65: (0.98, 0.03), 0.5: (0.95, 0.05)}
    for b in [b for b in wanted if b in found["nested"]]:
        at, (least, most) = found["nested"][b], wanted[b]
        rows.append((f"correlation at budget {b}", at.correlation, ">=", least))
        rows.append((f"mean absolute difference at budget {b}", at.difference, "<=", most))
        for rival, kind in [(rival, kind) for kind in ("", ", untrained") for rival in RIVALS]:
            if theirs := found[f"{rival}{kind}"].get(b):
                text = f"correlation at budget {b}, nested against {rival}{kind}"
                rows.append((text, found[f"nested{kind}"][b].correlation, ">=", theirs.correlation))
    return [Claim(text=text, left=left, relation=is_, right=right) for text, left, is_, right in rows]
