"""Test L2-SP with every installed optimizer: exact, exact only in coupled mode, or refused with a reason.

    python tools/bench/optimizers.py [--libraries torch timm]

Each optimizer trains a small network twice on the same gradients: without L2SP, and with L2SP in the mode that it
chooses. The change that L2SP adds in each step is compared with learning rate times strength times distance; in coupled
mode, the run is compared with a run in which the pull is added to the gradient by hand. The table is printed in the
Markdown format of docs/optimizers.md.
"""

import argparse
import importlib
import inspect
import math
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # before installed packages called tools, models or data

from mtsp.command_line import program
from mtsp.regularizers import L2SP
from mtsp.regularizers.checks import unwrapped
from mtsp.regularizers.rates import resolve_mode

STEPS, ALPHA = 4, 0.5
Make = Callable[[list[nn.Parameter]], Any]
LIBRARIES = {
    "torch": "torch",
    "timm": "timm",
    "pytorch_optimizer": "pytorch_optimizer",
    "bitsandbytes": "bitsandbytes",
    "torchao": "torchao",
    "schedulefree": "schedulefree",
    "prodigyopt": "prodigyopt",
    "dadaptation": "dadaptation",
    "lion_pytorch": "lion-pytorch",
    "transformers": "transformers",
}
"""Package name by module name."""


class Row(NamedTuple):
    """Result for one optimizer: for each mode, the exactness of the pull, or the reason of the refusal."""

    name: str
    chosen: str  # with the mode that L2SP chooses
    coupled: str  # with mode="coupled"


def rows(library: str) -> list[Row]:
    """Return a row for each optimizer of a library that runs on this machine.

    Raises:
        ImportError: the library is not installed.
    """
    found = []
    for name, make in makers(library):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            row = Row(name, seen(make, "auto"), seen(make, "coupled"))
        found.append(row)
    return found


def makers(library: str) -> Iterator[tuple[str, Make]]:
    """Yield the optimizers of a library by name."""
    module = importlib.import_module(library)
    if library == "timm":
        optim: Any = importlib.import_module("timm.optim")
        for name in optim.list_optimizers(exclude_filters=["bnb*", "fused*", "lookahead*"]):
            yield name, _timm(optim, name)
        return
    if library == "pytorch_optimizer":
        classes = importlib.import_module("pytorch_optimizer.optimizer").OPTIMIZERS
    else:
        where = {"torch": "torch.optim", "bitsandbytes": "bitsandbytes.optim", "torchao": "torchao.optim"}
        where["transformers"] = "transformers.optimization"
        classes = vars(importlib.import_module(where.get(library, module.__name__)))
    chosen = {name: kind for name, kind in classes.items() if _is_optimizer(kind) and not name.startswith("_")}
    # LBFGS takes many steps in one call (tested in tests/mtsp/regularizers/test_hook.py); the other takes none.
    for left_out in ("LBFGS", "lbfgs", "LayerWiseDummyOptimizer"):
        chosen.pop(left_out, None)
    for name in sorted(chosen):
        yield name, _maker(chosen[name])


def seen(make: Make, mode: Any) -> str:
    """Return the result of L2-SP with an optimizer in this mode, as a cell of the table."""
    reason = ""
    for dtype in (torch.float64, torch.float32):
        try:
            plain = _run(make, None, dtype)
        except Exception as error:  # it needs another machine or other settings
            reason = f"does not run here ({_first_line(error)})"
            continue
        try:
            pulled = _run(make, mode, dtype)
        except ValueError as error:
            return f"refused: {_first_line(error)}"
        arrived = _by_hand(make, pulled, dtype) if pulled.mode == "coupled" else _added(plain, pulled)
        worst = max((abs(share - 1) for share in arrived), default=math.nan)
        exact = 1e-6 if dtype == torch.float64 else 1e-2  # relative to a difference of a few rounding errors
        return f"{pulled.mode}, {'exact' if worst <= exact else f'within {100 * worst:.1g} %'}"
    return reason


class _Run(NamedTuple):
    points: list[Tensor]
    anchor: Tensor
    lrs: list[float]
    mode: str


def _run(make: Make, mode: Any, dtype: torch.dtype, *, by_hand: bool = False) -> _Run:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.Linear(8, 4, bias=False)).to(dtype)
    weight, anchors = model.get_parameter("0.weight"), {n: w.detach() * 0.5 for n, w in model.named_parameters()}
    optimizer = make(list(model.parameters()))
    if hasattr(optimizer, "train"):
        optimizer.train()
    regularizer = L2SP(model, anchors=anchors, alpha=ALPHA, beta=0.0, mode=mode or "auto")
    if mode is not None:
        regularizer.attach(optimizer)
    inside = unwrapped(optimizer)[-1]
    chosen = "" if mode is None else resolve_mode(regularizer.shared_penalty, regularizer.mode, inside)
    points, lrs = [weight.detach().double().clone()], []
    for step in range(STEPS):

        def gradients(step: int = step) -> Tensor:
            for place, (name, parameter) in enumerate(model.named_parameters()):
                values = torch.linspace(-3, 3, parameter.numel(), dtype=torch.float64).add(0.4 * step + place).sin()
                gradient = 0.1 * values.reshape(parameter.shape).to(dtype)
                parameter.grad = gradient + ALPHA * (parameter.detach() - anchors[name]) if by_hand else gradient
            return torch.zeros((), requires_grad=True)

        gradients()
        group = optimizer.param_groups[0]
        lrs.append(float(group.get("lr") or math.nan) * (float(group["d"]) if _estimates(group) else 1.0))
        needs = inspect.signature(type(optimizer).step).parameters.get("closure")
        optimizer.step(*([gradients] if needs is not None and needs.default is inspect.Parameter.empty else []))
        points.append(weight.detach().double().clone())
    return _Run(points, anchors["0.weight"].double(), lrs, chosen)


def _estimates(group: Mapping[str, Any]) -> bool:
    return "d" in group and "beta2_decay" not in group


def _added(plain: _Run, pulled: _Run) -> Iterator[float]:
    """Yield the change of the runs' difference in each step, over learning rate times strength times distance."""
    for step in range(1 if pulled.lrs[-1] != pulled.lrs[0] else STEPS):  # an estimate depends on the pull
        before, after = (pulled.points[i] - plain.points[i] for i in (step, step + 1))
        wanted = pulled.lrs[step] * ALPHA * (pulled.anchor - pulled.points[step])
        yield float(((after - before) * wanted).sum() / wanted.square().sum())


def _by_hand(make: Make, pulled: _Run, dtype: torch.dtype) -> Iterator[float]:
    """Yield 1 + the distance to a run with the pull added to its gradients, divided by the length of the step."""
    other = _run(make, None, dtype, by_hand=True)
    for one, two, start in zip(pulled.points[1:], other.points[1:], pulled.points, strict=False):
        move = float((two - start).norm())
        yield 1 + (float((one - two).norm()) / move if move else 0.0)


def _maker(kind: Any) -> Make:
    accepted = inspect.signature(kind.__init__).parameters
    settings = {key: value for key, value in {"lr": 1e-4, "weight_decay": 0.0}.items() if key in accepted}
    if "lr" in accepted and accepted["lr"].default in (1, 1.0):
        del settings["lr"]  # here `lr` is only a factor of the estimated learning rate
    if kind.__module__.startswith("bitsandbytes") and ("SGD" in kind.__name__ or "LARS" in kind.__name__):
        settings["momentum"] = 0.9
    if kind.__module__.startswith("transformers"):
        settings |= {"relative_step": False, "scale_parameter": False}
    muon = {"use_muon": True} if kind.__module__.startswith("pytorch_optimizer.optimizer.muon") else {}
    return lambda weights: kind([{"params": weights, **muon}], **settings)


def _timm(optim: Any, name: str) -> Make:
    return lambda weights: optim.create_optimizer_v2(weights, opt=name, lr=1e-4, weight_decay=0.0, momentum=0.9)


def _is_optimizer(kind: Any) -> bool:
    return inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def table(library: str) -> str:
    """Return the results of a library as a Markdown table; optimizers with equal results share a row."""
    alike: dict[tuple[str, str], list[str]] = {}
    for row in rows(library):
        alike.setdefault((_short(row.chosen), _short(row.coupled)), []).append(row.name)
    lines = [f'| {library} {version(LIBRARIES[library])} | as it chooses | `mode="coupled"` |', "| --- | --- | --- |"]
    for (chosen, coupled), names in sorted(alike.items(), key=lambda item: (-len(item[1]), item[0])):
        lines.append(f"| {', '.join(names)} | {chosen} | {coupled} |")
    return "\n".join(lines)


def _short(cell: str) -> str:
    """Return the text of a cell without the optimizer's name and the advice."""
    cell = cell.replace("|", "/")
    if found := re.search(r"refused: .* as it should: (\S+) times what was asked for", cell):
        return f"refused: {max(0.0, round(float(found[1]), 2)):g} of the pull arrives"
    for ending in ("; ", " (AliG", ", which a pull", " (Unrehearsed", " (KeyError"):
        cell = cell.partition(ending)[0]
    return cell


@program
def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--libraries", nargs="+", default=list(LIBRARIES), choices=LIBRARIES, help="libraries to test (default: all)"
    )
    for library in parser.parse_args(arguments).libraries:
        try:
            print(table(library), end="\n\n")
        except ImportError as error:
            print(f"{library}: {error}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
