"""Where timm is kept apart from what users get, and what lets it be imported beside any torch."""

import sys
from importlib.util import find_spec
from pathlib import Path

import torch

# `make develop` puts them here: a torchvision that does not fit torch would break transformers for whoever has it.
FOLDER = Path(sys.prefix) / "rivals"
# A library must stay referenced: its declarations vanish with it.
_DECLARED: list[torch.library.Library] = []


def reach_rivals() -> None:
    """Let this process import timm, and torchvision, whose CUDA build needs two operators that torch lacks on CPUs."""
    if FOLDER.is_dir() and str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    known = hasattr(torch.ops.torchvision, "nms")
    if known or find_spec("torchvision") is None or torch.version.cuda is not None:
        return
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _DECLARED.append(library)
