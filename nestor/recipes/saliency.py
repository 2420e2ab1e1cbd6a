"""Dense prediction: the saliency maps of an elastic network, on real photographs.

No paper: Nestor's own. Command: `nestor prove saliency`.

The packaged DINOv2 ViT-S/14 comes with a head that tells how salient each pixel is. The backbone is made elastic, the
head stays as it is, and the maps are compared with those of the full network on held-out photographs, budget by budget,
beside token merging, token pruning and one width for all patches: as they are, and after each was taught by the full
network's maps and patch tokens for as many steps. Budgets count the head, which no budget makes cheaper.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch

from nestor.data import Augment, load_splits
from nestor.measure.draw import sheet
from nestor.measure.maps import map_likeness
from nestor.measure.repeats import Repeats
from nestor.models.mapped import Mapped
from nestor.models.merged import Merged
from nestor.models.pretrained import read, read_saliency
from nestor.models.pruned import Pruned
from nestor.models.uniform import Uniform
from nestor.recipes.base import Claim, Proof
from nestor.surgery.fold import fold
from nestor.surgery.nest import nest, shape
from nestor.training.fit import fit
from nestor.training.parallel import side_by_side
from nestor.training.schedule import Sampled
from nestor.training.settings import Distil, Fit

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure

    from nestor.data import Pictures
    from nestor.measure.maps import MapLikeness

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
    train, _ = _parts(settings)
    return _networks(_full(), train, settings)["nested"]


def prove(settings: Settings, folder: Path | None = None) -> Proof:
    """Exactness at full budget, then likeness of the maps over budgets, untrained and trained."""
    train, test = _parts(settings)
    full = _full()
    untrained = _networks(full, train, settings)
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
        figures={"maps": _sheet(shown, full, _some(test, settings.shown), settings.budgets)},
    )


def curves(details: dict[str, Any]) -> tuple[Repeats, Repeats]:
    """Correlation and difference of the maps over what was spent."""
    found = details["maps"]
    order = ("nested", *RIVALS, *(f"{name}, untrained" for name in ("nested", *RIVALS)))
    # As many lines as there are colours to tell them apart.
    names = [name for name in order if name in found][:6]

    def over(what: str, told: str) -> Repeats:
        return Repeats(
            title=f"Saliency maps, {details['pictures']['held out']} held-out pictures",
            across="share of the full network's multiply-accumulates, head included",
            upward=told,
            lines={name: {at["spent"]: [at[what]] for at in found[name].values()} for name in names},
            levels={},
        )

    return (
        over("correlation", "correlation with the full map"),
        over("difference", "mean absolute difference from the full map"),
    )


@cache
def _parts(settings: Settings) -> tuple[Pictures, Pictures]:
    parts = load_splits(settings.source, size=settings.size)
    train, test = (part if settings.pictures is None else part.limit(settings.pictures) for part in parts)
    return train.cached(), test.cached()


def _full() -> Mapped:
    # The head is not trained: what it reads shall stay what it was made for.
    return Mapped(fold(read("dinov2-small")), read_saliency().requires_grad_(False))


def _networks(full: Mapped, train: Pictures, settings: Settings) -> dict[str, Mapped]:
    dense, images = full.inside, train.limit(settings.calibration).stacked()
    own = dense.settings.nest
    widths = shape(own.widths[0], own.hidden[0], own.heads[0], (0.25, 0.5, 0.75, 1.0))
    backbones = {
        "nested": nest(dense, images),
        "merging": Merged(dense),
        "pruning": Pruned(dense),
        "uniform width": Uniform(nest(dense, images, nest=widths)),
    }
    return {name: Mapped(backbone, full.head) for name, backbone in backbones.items()}


def _taught(settings: Settings, folder: Path | None, name: str) -> Mapped:
    train, _ = _parts(settings)
    full = _full()
    how = Fit(
        epochs=settings.epochs,
        batch=settings.batch,
        rate=settings.rate,
        seed=settings.seed,
        precision="bf16",
        augment=Augment(flip=True),
        budgets=Sampled(low=min(settings.budgets), high=0.8),
        loss=Distil(logits=1.0, temperature=1.0, prefix=0.0, patches=1.0),
    )
    network = _networks(full, train, settings)[name]
    return fit(network, train, how, teacher=full, out=folder and folder / name)


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
    claims, wanted = [], {0.65: (0.98, 0.03), 0.5: (0.95, 0.05)}
    for budget in [budget for budget in wanted if budget in found["nested"]]:
        at, (least, most) = found["nested"][budget], wanted[budget]
        claims += [
            Claim(text=f"correlation at budget {budget}", left=at.correlation, relation=">=", right=least),
            Claim(text=f"mean absolute difference at budget {budget}", left=at.difference, relation="<=", right=most),
        ]
        for kind in ("", ", untrained"):
            claims += [
                Claim(
                    text=f"correlation at budget {budget}, nested against {rival}{kind}",
                    left=found[f"nested{kind}"][budget].correlation,
                    relation=">=",
                    right=found[f"{rival}{kind}"][budget].correlation,
                )
                for rival in RIVALS
                if budget in found[f"{rival}{kind}"]
            ]
    return claims


def _some(pictures: Pictures, count: int) -> Pictures:
    """Evenly spread, so that each shows another photograph; of those cut into squares, the middle one."""
    return pictures.subset(range(len(pictures))[1 :: max(1, len(pictures) // count)][:count])


def _sheet(network: Mapped, full: Mapped, pictures: Pictures, budgets: tuple[float, ...]) -> Figure:
    images = pictures.stacked()
    with torch.no_grad():
        maps = [full.map(images), *(network.map(images, budget=budget) for budget in budgets[1:])]
    rows = [(pictures.pixels(i), *(each[i] for each in maps)) for i in range(len(pictures))]
    return sheet(("photograph", "full network", *(f"budget {budget:g}" for budget in budgets[1:])), rows)
