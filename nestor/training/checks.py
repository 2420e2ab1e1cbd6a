"""What must hold before the first step, so that no run fails half-way for a reason known at its start."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nestor.data import Clips, require_classes

if TYPE_CHECKING:
    from nestor.data import Examples
    from nestor.models.video import Network
    from nestor.training.settings import Fit


def label_weight(model: Network, pictures: Examples, settings: Fit, teacher: Network | None) -> float:
    """How much labels count in the loss; nothing where there are none, or no head to learn them."""
    if not model.settings.classes or not pictures.classes or min(pictures.labels) < 0:
        return 0.0
    if settings.loss.labels is not None:
        return settings.loss.labels
    return 0.0 if teacher is not None and teacher.head is not None and settings.loss.logits else 1.0


def sandwiched(model: Network, settings: Fit, teacher: Network | None) -> bool:
    """Whether the full network runs beside the drawn budget."""
    if settings.sandwich is None:
        # Composed and adopted networks have no nest.
        nest = getattr(model.settings, "nest", None)
        return teacher is None and nest is not None and nest.experts > 1
    return settings.sandwich


def check(
    model: Network, pictures: Examples, settings: Fit, teacher: Network | None, validate: Examples | None
) -> None:
    """Refuse what cannot be trained.

    Raises:
        ValueError: there is nothing to learn from, or network, pictures, teacher and settings do not fit together.
    """
    if not len(pictures):
        raise ValueError("there are no pictures to train on. Load at least two classes of them.")
    if settings.augment is not None and isinstance(pictures, Clips):
        raise ValueError("random changes are for pictures, since a mirrored clip moves another way. Set augment=None.")
    patches = patches_of(model, pictures)
    least = model.least_budget(patches)
    model.plan(patches, settings.budgets.draw(settings.seed, 0, least))
    if teacher is None:
        if not model.settings.classes:
            raise ValueError(
                "without a teacher the network needs a head; it has none. Give it a head, or name a teacher."
            )
        if settings.loss.labels == 0:
            raise ValueError("without a teacher labels must count; got Distil(labels=0). Raise it, or name a teacher.")
        require_classes(pictures)
    else:
        patches_of(teacher, pictures)
        _check_teacher(model, teacher, settings, pictures.shape)
    if label_weight(model, pictures, settings, teacher):
        require_classes(pictures)
        _check_head(model, pictures)
    if validate is not None:
        if not model.settings.classes:
            raise ValueError("validation needs a network with a head; it has none. Leave validate out.")
        require_classes(validate, 1)
        _check_head(model, validate)
        if validate.size != pictures.size:
            raise ValueError(
                f"pictures for validation must be as large as those for training, {pictures.size} px; "
                f"got {validate.size} px. Use validate.at({pictures.size})."
            )
        patches_of(model, validate)


def patches_of(model: Network, pictures: Examples) -> int:
    """How many patches the network cuts each of these pictures, or each index of these clips, into.

    Raises:
        ValueError: when they do not fit the network.
    """
    rows, columns = model.cells((1, *pictures.shape))[-2:]
    return rows * columns


def _check_head(model: Network, pictures: Examples) -> None:
    settings = model.settings
    if settings.classes != len(pictures.classes):
        raise ValueError(
            f"the head has {settings.classes} classes and the pictures {len(pictures.classes)}. "
            "Give the network a fresh head for these pictures."
        )
    if settings.labels != pictures.classes and sorted(settings.labels) == sorted(pictures.classes):
        raise ValueError(
            f"head and pictures name the same classes in another order: {', '.join(settings.labels)} against "
            f"{', '.join(pictures.classes)}. Load the pictures in the head's order, or give the network a fresh head."
        )


def _check_teacher(model: Network, teacher: Network, settings: Fit, shape: tuple[int, ...]) -> None:
    ours, theirs, loss = model.settings, teacher.settings, settings.loss
    tokens, heads = loss.prefix > 0 or loss.patches > 0, model.head is not None and teacher.head is not None
    if heads and loss.logits and ours.classes != theirs.classes:
        raise ValueError(
            f"the teacher has {theirs.classes} classes and the network {ours.classes}. "
            "Give both a head for the same classes, or set Distil(logits=0)."
        )
    if tokens:
        other = next((each for each in (teacher, model) if not hasattr(each.settings, "nest")), None)
        if other is not None:
            raise ValueError(
                f"tokens are matched between vision transformers of ours only; got {type(other).__name__}. "
                "Set Distil(prefix=0, patches=0)."
            )
        pairs = {
            "width": (theirs.nest.widths[-1], ours.nest.widths[-1]),
            "prefix": (theirs.prefix, ours.prefix),
            "patches on a picture": (teacher.cells((1, *shape)), model.cells((1, *shape))),
        }
        for what, (their, our) in pairs.items():
            if their != our:
                raise ValueError(
                    f"the teacher has {what} {their} and the network {our}. "
                    "Take a teacher of the same shape, or set Distil(prefix=0, patches=0)."
                )
    if (ours.mean, ours.std) != (theirs.mean, theirs.std):
        raise ValueError(
            f"the teacher wants pictures with mean {theirs.mean} and std {theirs.std}, the network {ours.mean} and "
            f"{ours.std}. Take a teacher with the same preprocessing."
        )
    learns = tokens or (heads and loss.logits) or (ours.classes and loss.labels != 0)
    if not learns:
        raise ValueError("no part of the loss applies to this network and teacher. Raise a weight of Distil.")
