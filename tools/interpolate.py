"""Interpolate between weights before and after fine-tuning (WiSE-FT).

    python tools/interpolate.py --start A --end B --fraction 0.5 --out FILE

A and B are .safetensors files or run folders. If --start is omitted, B must be a run folder, and A is the weights from
which that run started.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before installed packages called tools, models or data

from mtsp.command_line import program

if TYPE_CHECKING:
    from torch import Tensor


@program
def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, interpolate and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument(
        "--start", type=Path, metavar="A", help="weights before fine-tuning, or run folder (default: start of run B)"
    )
    parser.add_argument("--end", type=Path, required=True, metavar="B", help="weights or run folder after fine-tuning")
    parser.add_argument("--fraction", type=float, default=0.5, help="weight of B, 0 to 1 (default: 0.5)")
    parser.add_argument(
        "--only", nargs="+", metavar="PREFIX", help="branches to interpolate; take all other weights from B"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help=".safetensors file to write")
    options = parser.parse_args(arguments)

    from models.pretrained.load_trained import trained_classes
    from mtsp.files.tensors import write_tensors
    from mtsp.methods.wise_ft import interpolated

    begun = _weights(options.start) if options.start is not None else _started_from(options.end)
    mixed = interpolated(begun, _weights(options.end), options.fraction, only=options.only)
    classes = trained_classes(_file(options.end))
    write_tensors(options.out, mixed, {"classes": json.dumps(classes)} if classes else None)
    print(options.out)
    return 0


def _weights(path: Path) -> "Mapping[str, Tensor]":
    from models.pretrained.files import read

    return read(_file(path)).tensors


def _file(path: Path) -> Path:
    return path / "weights.safetensors" if path.is_dir() else path


def _started_from(run_dir: Path) -> "Mapping[str, Tensor]":
    from tools.build import build_network, read_experiment

    file = run_dir / "experiment.yaml"
    if not file.is_file():
        raise ValueError(f"{run_dir} is not a run folder, so its starting weights are unknown; add --start")
    return build_network(read_experiment(file)).model.state_dict()


if __name__ == "__main__":
    sys.exit(main())
