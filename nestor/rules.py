"""State-dict rules: how tensors of one naming scheme become those of another, nothing left over on either side."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor

Shape = tuple[int, ...]

# int8 and the eight-bit floats mean something only together with scales, which these rules do not know.
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_FIELDS = {"i": r"(?P<i>\d+)", "kind": r"(?P<kind>weight|bias)"}
_SHOWN = 5


@dataclass(frozen=True)
class Rule:
    """Where one kind of target tensor comes from.

    `target` and `sources` are names in which `{i}` stands for the number of a block and `{kind}` for `weight` or
    `bias`. `function` turns the source tensors into the target; without it the one source is taken as it is. A rule
    without sources gives zeros: it belongs after the rule that names the sources, for families that may lack them.
    """

    target: str
    sources: str | tuple[str, ...] = ()
    function: Callable[..., Tensor] | None = None

    def bind(self, name: str) -> tuple[str, ...] | None:
        """Names of the sources of the target called `name`; None when the rule is not about it."""
        found = _pattern(self.target).fullmatch(name)
        if found is None:
            return None
        sources = (self.sources,) if isinstance(self.sources, str) else self.sources
        return tuple(source.format(**found.groupdict()) for source in sources)


def concatenate(*parts: Tensor) -> Tensor:
    """Stack equally shaped projections along their outputs, like queries, keys and values: n (D,...) -> (nD,...)."""
    if len({part.shape for part in parts}) > 1:
        raise ValueError("the parts differ in shape")
    return torch.cat(parts)


def translate(
    rules: Sequence[Rule],
    tensors: Mapping[str, Tensor],
    expected: Mapping[str, Shape],
    *,
    ignore: Sequence[str] = (),
    source: str = "the state dict",
) -> dict[str, Tensor]:
    """Build the `expected` tensors in single precision; for each, the first rule whose sources are all there decides.

    `ignore` holds shell patterns (`text_model.*`) of source tensors that may be left over. Raises ValueError, with up
    to five names and shapes, when a source is left over, missing, misshapen or not a plain floating-point tensor.
    """
    result: dict[str, Tensor] = {}
    used: set[str] = set()
    faults: list[str] = []
    for name, shape in expected.items():
        bound = [(rule, names) for rule in rules if (names := rule.bind(name)) is not None]
        chosen = next(((rule, names) for rule, names in bound if all(n in tensors for n in names)), None)
        if chosen is None:
            faults.append(_missing(name, shape, [names for _, names in bound], tensors))
            # A half-found group is one fault, not one for what is missing and more for what is left over.
            used.update(n for _, names in bound for n in names)
            continue
        rule, names = chosen
        used.update(names)
        made, fault = _make(rule, [tensors[n] for n in names], shape)
        if fault is None and made is not None:
            result[name] = made
        else:
            parts = ", ".join(f"{n} {tuple(tensors[n].shape)}" for n in names)
            faults.append(f"misshapen {parts}: expected {name} {shape}, {fault}")
    for name, tensor in tensors.items():
        if name not in used and not any(fnmatchcase(name, pattern) for pattern in ignore):
            faults.append(f"unexpected {name}: expected nothing by this name, found {tuple(tensor.shape)}")
    if faults:
        raise ValueError(_report(faults, source))
    return result


def _make(rule: Rule, parts: list[Tensor], shape: Shape) -> tuple[Tensor | None, str | None]:
    wrong = next((part.dtype for part in parts if part.dtype not in _FLOATS), None)
    if wrong is not None:
        return None, f"found numbers of type {wrong}"
    if not parts:
        return torch.zeros(shape), None
    try:
        made = rule.function(*parts) if rule.function else parts[0]
    except (RuntimeError, ValueError, IndexError) as error:
        return None, f"found shapes that cannot become it ({error})"
    if tuple(made.shape) != shape:
        return None, f"found {tuple(made.shape)}"
    return made.detach().to(torch.float32).contiguous(), None


def _missing(name: str, shape: Shape, options: list[tuple[str, ...]], tensors: Mapping[str, Tensor]) -> str:
    # Of several naming schemes, speak of the one of which most is there.
    best = max(options, key=lambda names: sum(n in tensors for n in names), default=())
    absent = ", ".join(n for n in best if n not in tensors) or name
    return f"missing {absent}: expected for {name} {shape}, found nothing"


def _report(faults: list[str], source: str) -> str:
    shown = "\n  ".join(faults[:_SHOWN])
    more = f"\n  and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
    return (
        f"Weights must fit the network exactly; {len(faults)} of {source} do not:\n  {shown}{more}\n"
        "Check that the configuration belongs to these weights and that the file is complete."
    )


def _pattern(template: str) -> re.Pattern[str]:
    # re caches compiled patterns, so rebuilding the expression for each name costs little.
    escaped = re.escape(template)
    for field, expression in _FIELDS.items():
        escaped = escaped.replace(re.escape(f"{{{field}}}"), expression)
    return re.compile(escaped)
