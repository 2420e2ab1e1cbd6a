"""The model card: what a network is, what it costs and gives, whose weights it was made of, and how to use it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from nestor.measure.record import Profile
from nestor.measure.table import cost_cells, latency_cells
from nestor.models.vit import ViT
from nestor.store import write_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nestor.measure.record import Network, Point
    from nestor.models.vit import ViTSettings

CARD, CURVE = "README.md", "curve.png"

TAGS = ("nestor", "vision", "elastic", "mixture-of-experts")

# What is known of weights that Nestor itself can fetch: licence and name on the hub.
SOURCES = {"packaged:dinov2-small": ("apache-2.0", "facebook/dinov2-small")}


def write_card(
    folder: str | Path,
    settings: ViTSettings,
    *,
    name: str,
    profile: Profile | str | Path | None = None,
    licence: str | None = None,
    tags: Sequence[str] = (),
) -> None:
    """Write README.md, and with a profile curve.png, into the folder of a network.

    Args:
        folder: of the network.
        settings: how it is built.
        name: what it will be called, `user/name`.
        profile: what `nestor profile` measured, or the file that it wrote.
        licence: of the source weights, as the hub names it; needed unless Nestor knows the source.
        tags: for the hub's search, beside our own.

    Raises:
        ImportError: there is a profile and matplotlib is missing.
        ValueError: the profile cannot be read.
    """
    if isinstance(profile, (str, Path)):
        profile = Profile.from_json(Path(profile).read_text(encoding="utf-8"))
    if profile is not None:
        from nestor.measure.draw import curve

        curve(profile).savefig(Path(folder) / CURVE, bbox_inches="tight", dpi=150)
    write_text(Path(folder) / CARD, model_card(settings, name=name, profile=profile, licence=licence, tags=tags))


def model_card(
    settings: ViTSettings,
    *,
    name: str,
    profile: Profile | None = None,
    licence: str | None = None,
    tags: Sequence[str] = (),
) -> str:
    """The card as Markdown with a YAML header; arguments as in `write_card`."""
    from huggingface_hub import ModelCardData

    known, base = SOURCES.get(settings.source, (None, None))
    licence = licence or known
    data = ModelCardData(
        license=licence or "other",
        license_name=None if licence else "unknown",
        library_name="transformers",
        pipeline_tag="image-classification" if settings.classes else "image-feature-extraction",
        tags=list(dict.fromkeys([*TAGS, *tags])),
        base_model=base,
    )
    sections = [
        f"---\n{data.to_yaml()}\n---\n\n# {name}\n",
        _description(settings),
        f"## Use\n\n{_use(settings, name)}",
    ]
    if profile is not None:
        sections.append(_measured(profile))
    sections.append(_licence(settings, licence))
    return "\n".join(sections)


def push(
    folder: str | Path,
    repo_id: str,
    *,
    commit_message: str,
    commit_description: str | None,
    private: bool | None,
    token: bool | str | None,
    revision: str | None,
    create_pr: bool,
) -> str:
    """Upload all files of a folder to the hub, and return the address of the commit."""
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    full = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None and not create_pr:
        api.create_branch(full, branch=revision, exist_ok=True)
    done = api.upload_folder(
        repo_id=full,
        folder_path=folder,
        commit_message=commit_message,
        commit_description=commit_description,
        revision=revision,
        create_pr=create_pr,
    )
    return str(done)


def _use(settings: ViTSettings, name: str) -> str:
    if settings.classes:
        made, call = "classify", f'pipeline("image-classification", model="{name}")'
        model, last = "classify.model", 'classify("photo.jpg")'
    else:
        made, call = "model", f'AutoModel.from_pretrained("{name}")'
        model, last = "model", "tokens = model(pixel_values).last_hidden_state"
    lines = [
        "import nestor  # pip install 'nestor[hub]'",
        f"from transformers import {call.split('(')[0].split('.')[0]}",
    ]
    lines += ["", f"{made} = {call}"]
    if settings.nest.experts > 1:
        with torch.device("meta"):
            outline = ViT(settings)
        least = outline.least_budget((settings.nominal // settings.patch) ** 2)
        budget = next(each for each in (0.5, 0.7, 0.9, 1.0) if each >= least)
        lines.append(f"{model}.budget = {budget:g}  # this share of the multiply-accumulates, from {least:.2f} to 1")
    lines.append(last)
    code = "\n".join(lines)
    return f'```python\n{code}\n```\n\nWithout transformers: `model = nestor.load("{name}")`, then `model(images)`.\n'


def _description(s: ViTSettings) -> str:
    nest = s.nest
    what = f"a vision transformer with {s.depth} blocks, patches of {s.patch} pixels and {nest.widths[-1]} channels"
    lines = [f"This is {what}, for pictures of {s.nominal} pixels."]
    if nest.experts > 1:
        lines.append(
            f"It is elastic: each patch runs at one of {nest.experts} widths ({', '.join(map(str, nest.widths))} "
            "channels), which a router chooses, and `model.budget` sets how many run at which. One set of weights "
            "serves every budget (mixture of nested experts, arXiv 2407.19985)."
        )
    if s.classes:
        shown = ", ".join(s.labels[:20]) + (", ..." if len(s.labels) > 20 else "")
        lines.append(f"It tells {s.classes} classes apart" + (f": {shown}." if s.labels else "."))
    return "\n\n".join(lines) + "\n"


def _measured(profile: Profile) -> str:
    parts = [
        f"## Measured\n\n![{profile.measure} at every budget]({CURVE})\n",
        f"On {profile.pictures} pictures of {profile.size} pixels:\n",
        _table(profile, cost_cells),
    ]
    if profile.settings_timed:
        where = ", ".join(f"{name} {value}" for name, value in profile.machine.items())
        parts += [
            f"Milliseconds of a batch, speed-up over dense, and speed-up over the reduction of MACs ({where}):\n",
            _table(profile, latency_cells),
        ]
    return "\n".join(parts)


def _table(profile: Profile, cells: Callable[[Profile, Network, Point], dict[str, str]]) -> str:
    names = ["network", *cells(profile, profile.dense, profile.dense.points[0])]
    rows = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    for network in (profile.dense, *profile.networks):
        rows += [
            "| " + " | ".join([network.name, *cells(profile, network, point).values()]) + " |"
            for point in network.points
        ]
    return "\n".join(rows) + "\n"


def _licence(settings: ViTSettings, licence: str | None) -> str:
    if licence is None:
        told = f"The weights were made from `{settings.source}`, whose licence is not recorded: look there before use."
    else:
        told = f"The weights were made from `{settings.source}`, under {licence}, and are passed on under it."
    return f"## Licence\n\n{told}\n"
