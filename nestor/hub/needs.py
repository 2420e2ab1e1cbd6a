"""What keeps transformers from being imported, and how that is mended."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec


def repair(error: BaseException) -> str:
    """One line about an error of importing transformers: what is wrong, and what to install or uninstall."""
    if find_spec("transformers") is None:
        return "nestor.hub needs transformers. Install it: pip install 'nestor[hub]'"
    # transformers hides the first error behind its own.
    while (deeper := error.__cause__ or error.__context__) is not None:
        error = deeper
    said = " ".join(str(error).split())
    if _broken("torchvision"):
        return (
            "nestor.hub needs transformers, which imports torchvision where it is installed, and torchvision "
            f"{_version('torchvision')} does not fit torch {_version('torch')} ({said}). Uninstall it: pip uninstall "
            "torchvision; or install the build that fits torch."
        )
    return (
        f"nestor.hub needs transformers, and transformers {_version('transformers')} cannot be imported ({said}). "
        "Install one that can: pip install --upgrade 'nestor[hub]'"
    )


def _broken(module: str) -> bool:
    if find_spec(module) is None:
        return False
    try:
        import_module(module)
    # A library of another build fails in any way it likes.
    except Exception:
        return True
    return False


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "of no known version"
