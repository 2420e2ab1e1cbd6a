"""Our networks under transformers' Auto classes, without importing transformers, torch or `nestor.hub`.

`import nestor` asks for it: as soon as transformers has loaded `AutoConfig`, before or after, it knows of our folders.
`nestor.hub` takes seconds to import and comes only when the first of them is opened.
"""

from __future__ import annotations

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import PathFinder
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

    from nestor.hub import NestorConfig

MODEL_TYPE = "nestor"
AUTO = "transformers.models.auto.configuration_auto"
"""Where transformers defines `AutoConfig`, which all Auto classes and pipelines ask first."""


def announce() -> None:
    """Make our networks known to transformers' Auto classes: now, or when these are loaded."""
    if AUTO in sys.modules:
        _register(sys.modules[AUTO])
    elif not any(isinstance(finder, _Awaiting) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Awaiting())


def _register(module: ModuleType) -> None:
    # What `nestor.hub` has registered stays.
    if MODEL_TYPE not in module.CONFIG_MAPPING:
        module.AutoConfig.register(MODEL_TYPE, _Unopened)


class _Opening(type):
    """Hands on to `NestorConfig`, which is imported by the first use."""

    def __call__(cls, *args: Any, **kwargs: Any) -> NestorConfig:
        return _config()(*args, **kwargs)

    def __getattr__(cls, name: str) -> Any:
        # Python's own questions to a class are none about our config.
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(_config(), name)


class _Unopened(metaclass=_Opening):
    """Stands for `NestorConfig` until a folder of ours is opened; then `nestor.hub` registers the true classes."""


def _config() -> type[NestorConfig]:
    from nestor.hub import NestorConfig

    return NestorConfig


class _Awaiting(MetaPathFinder):
    """Waits for transformers' `AutoConfig` to be loaded, and then leaves."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != AUTO:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Registering(spec.loader, self)
        return spec


class _Registering(Loader):
    """Loads `AutoConfig` as its own loader does, leaves no trace on it, and registers our networks."""

    def __init__(self, own: Loader, finder: _Awaiting):
        self.own = own
        self.finder = finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self.own
        if module.__spec__ is not None:
            module.__spec__.loader = self.own
        self.own.exec_module(module)
        if self.finder in sys.meta_path:
            sys.meta_path.remove(self.finder)
        _register(module)
