"""Export a trained network for deployment: `python tools/export.py RUN --to onnx`.

RUN is the folder of a finished run. The program writes to RUN/export (or `--out`):

    network.onnx          for onnxruntime and others; infer.py beside it runs it with onnxruntime and numpy alone
    network.pt2           (`--to torch_export`) for torch.export.load
    network.safetensors   (`--to safetensors`) the weights

Each takes any number of frames of any size, RGB in [0, 1]; normalization is part of the network. Class names, the
fingerprint of the anchor and the network's config are in its metadata. Before a file is written, its results are
compared with PyTorch's at three sizes, and a difference above 1e-4 is an error.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before installed packages called tools, models or data

from mtsp.command_line import height_width, program

if TYPE_CHECKING:
    from torch import nn

    from models.export import Parity

FILES = {"onnx": "network.onnx", "torch_export": "network.pt2", "safetensors": "network.safetensors"}
SHAPES = ((1, 128, 160), (2, 179, 131), (1, 240, 320))
"""Number, height and width of the frames for which exported networks are compared with PyTorch."""

INFER = '''"""Run network.onnx: `python infer.py frame.npy [next_frame.npy]`, HxWx3 bytes each; writes OUTPUT.npy."""

import sys
from pathlib import Path

import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession(Path(__file__).with_name("network.onnx"))
frames = [np.load(path).transpose(2, 0, 1)[None].astype(np.float32) / 255 for path in sys.argv[1:]]
fed = {value.name: frame for value, frame in zip(session.get_inputs(), frames, strict=True)}
for value, result in zip(session.get_outputs(), session.run(None, fed)):
    print(value.name, result.shape, session.get_modelmeta().custom_metadata_map.get("classes", ""))
    np.save(f"{value.name}.npy", result)
'''


@program
def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, export, compare and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("run", nargs="?", type=Path, metavar="RUN", help="folder of a finished run")
    parser.add_argument("--to", choices=FILES, default="onnx", help="kind of file to write (default: onnx)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to write to (default: RUN/export)")
    parser.add_argument(
        "--size", type=height_width, metavar="HxW", help="take only frames of this size, for networks that need it"
    )
    parser.add_argument(
        "--parity",
        nargs="+",
        metavar="CONFIG",
        help="instead of a run, export the networks of these configs with random weights; print a table of differences "
        "(key=value among them sets a value in each)",
    )
    options = parser.parse_args(arguments)
    if (options.run is None) == (options.parity is None):
        parser.error("give either RUN or --parity")
    if options.parity is not None:
        print(parity_table(options.parity, options.to))
        return 0
    path = export(options.run, options.to, options.out or options.run / "export", options.size)
    print(path)
    return 0


def export(run: Path, kind: str, out: Path, size: tuple[int, int] | None = None) -> Path:
    """Export the network of a run; return the file.

    Raises:
        ValueError: the folder has no finished run, the network cannot be exported, or the exported one differs.
        FileNotFoundError: likewise.
    """
    from models.pretrained.load_trained import load_trained
    from mtsp.files.atomic_file import write_atomically
    from mtsp.files.tensors import read_tensors, write_tensors
    from tools.build import read_experiment

    weights = run / "weights.safetensors"
    if not weights.is_file():
        raise FileNotFoundError(f"no {weights}; name the folder of a run that has ended")
    experiment = read_experiment(run / "experiment.yaml")
    tensors, notes = read_tensors(weights)
    model = load_trained(experiment, weights)
    metadata = {**notes, "name": experiment.name, "model": experiment.model.model_dump_json()}
    file = out / FILES[kind]
    out.mkdir(parents=True, exist_ok=True)
    if kind == "safetensors":
        write_tensors(file, tensors, metadata)
        return file
    write_atomically(file, checked(model, kind, metadata, size)[0])
    if kind == "onnx":
        write_atomically(out / "infer.py", INFER.encode())
    return file


def parity_table(configs_and_settings: Sequence[str], kind: str) -> str:
    """Return a Markdown table of the differences between PyTorch and the exported networks of configs.

    Entries with a "=" are no configs but values to override in each.
    """
    import torch
    from torch import nn

    from tools.build import read_experiment

    configs = [entry for entry in configs_and_settings if "=" not in entry]
    settings = [entry for entry in configs_and_settings if "=" in entry]
    sizes = [f"{batch} x {height}x{width}" for batch, height, width in SHAPES]
    lines = [f"| config | network | output | {' | '.join(sizes)} |", "|---|---|---|" + "---:|" * len(sizes)]
    for config in configs:
        experiment = read_experiment(config, settings)
        torch.manual_seed(experiment.seed)
        model = experiment.model.build()
        for parameter in model.parameters():
            if not parameter.any():  # a layer that is zero at first would hide what it reads
                nn.init.normal_(parameter, std=0.01)
        parity = checked(model, kind, {})[1]
        flow = getattr(experiment.model, "flow", None)
        network = experiment.model.name if flow is None else f"{experiment.model.name}, {flow.name}"
        for output in parity[0].differences:
            values = " | ".join(f"{differences[output]:.1e}" for _, differences in parity)
            lines.append(f"| {Path(config).stem} | {network} | {output} | {values} |")
    return "\n".join(lines)


def checked(
    model: "nn.Module", kind: str, metadata: dict[str, str], size: tuple[int, int] | None = None
) -> "tuple[bytes, list[Parity]]":
    """Return an exported network as bytes, and its differences from PyTorch. Raises ValueError if these are large."""
    from models.export import TOLERANCE, Deployed, onnx_bytes, onnx_parity, program_bytes, program_parity, traced

    network = Deployed(model)
    shapes = SHAPES if size is None else tuple((batch, *size) for batch in (1, 2, 3))
    exported = traced(network, size)
    try:
        if kind == "onnx":
            content = onnx_bytes(network, exported, metadata)
            parity = onnx_parity(network, content, shapes)
        else:
            content = program_bytes(exported, metadata)
            parity = program_parity(network, exported, shapes)
    except ImportError as error:
        raise ValueError(f"{error.name} is not installed: pip install 'mtsp[export]'") from error
    for shape, differences in parity:
        told = ", ".join(f"{name} {value:.1e}" for name, value in differences.items())
        print(f"{shape[0]} x {shape[1]}x{shape[2]}: differs from PyTorch by {told}", file=sys.stderr)
        if not max(differences.values()) <= TOLERANCE:
            raise ValueError(f"the exported network differs from PyTorch by more than {TOLERANCE}; nothing was written")
    return content, parity


if __name__ == "__main__":
    sys.exit(main())
