"""Export networks for deployment: programs of torch.export and ONNX files that take any number of images of any size.

Needs the extra `export` for ONNX. Frames are RGB in [0, 1]; normalization is part of the network.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from models.blocks import exporting

INPUTS = ("frame", "next_frame")
OUTPUTS = ("mask_logits", "flow", "label_logits")
TOLERANCE = 1e-4
"""Largest difference between an exported network and PyTorch, relative to the largest value, or to 1 if it is less."""

_TRACED = (2, 3, 150, 202)  # any sides would do, but 1 would be taken as a constant


class Parity(NamedTuple):
    """Largest differences of an exported network from PyTorch on random frames."""

    shape: tuple[int, int, int]  # number of frames, height, width
    differences: dict[str, float]  # by output, relative as in TOLERANCE


class Deployed(nn.Module):
    """A network in evaluation mode that returns its predictions in the order of :data:`OUTPUTS`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.eval()
        paired = "flow" in getattr(model, "branches", ())
        self.inputs = INPUTS if paired else INPUTS[:1]
        self.outputs: tuple[str, ...] = ()
        """Names of the outputs, known after a call."""

    def forward(self, *frames: Tensor) -> tuple[Tensor, ...]:
        """Return the predictions for frames, B3HW each, RGB in [0, 1]."""
        found = self.model(*frames)
        if not exporting():
            self.outputs = tuple(name for name in OUTPUTS if name in found)
        return tuple(found[name] for name in OUTPUTS if name in found)

    def frames(self, batch: int, height: int, width: int, seed: int = 0) -> tuple[Tensor, ...]:
        """Return random frames of this size, one for each input."""
        generator = torch.Generator().manual_seed(seed)
        return tuple(torch.rand(batch, 3, height, width, generator=generator) for _ in self.inputs)


def traced(network: Deployed, size: tuple[int, int] | None = None) -> torch.export.ExportedProgram:
    """Return the network as a program of torch.export.

    Args:
        network: the network.
        size: the one height and width that the program takes; None: any. The number of images is always free.

    Raises:
        ValueError: the network depends on the size of its images, and `size` is None; or it does not take `size`.
    """
    batch, _, *sides = _TRACED
    height, width = size or sides
    free = torch.export.Dim.DYNAMIC
    dynamic = {0: free} if size else {0: free, 2: free, 3: free}
    try:
        with torch.no_grad():
            frames = network.frames(batch, height, width)
            network(*frames)
            return torch.export.export(network, frames, dynamic_shapes={"frames": (dynamic,) * len(frames)})
    except Exception as error:  # the type of error depends on what cannot be traced
        raise _refusal(error, size) from error


def program_bytes(program: torch.export.ExportedProgram, metadata: Mapping[str, str]) -> bytes:
    """Return the content of a file for `torch.export.load`, with the metadata as its extra files."""
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files=dict(metadata))
    return buffer.getvalue()


def onnx_bytes(network: Deployed, program: torch.export.ExportedProgram, metadata: Mapping[str, str]) -> bytes:
    """Return the content of an ONNX file with the metadata, with named inputs, outputs and free dimensions.

    Raises:
        ImportError: the extra `export` is not installed.
        ValueError: this version of torch cannot write the program as ONNX.
    """
    try:
        exported: Any = torch.onnx.export(
            program, input_names=network.inputs, output_names=network.outputs, dynamo=True, verbose=False
        )
    except ImportError:
        raise
    except Exception as error:  # the exporter wraps whatever its passes raise
        raise ValueError(
            f"torch {torch.__version__} cannot write the network as ONNX: {_reason(error)}; a newer one may"
        ) from error
    proto = exported.model_proto
    for value in proto.graph.input:
        for name, dimension in zip(("batch", "", "height", "width"), value.type.tensor_type.shape.dim, strict=True):
            if dimension.dim_param:
                dimension.dim_param = name
    for key, text in metadata.items():
        proto.metadata_props.add(key=key, value=text)
    return proto.SerializeToString()


def onnx_parity(network: Deployed, content: bytes, shapes: Sequence[tuple[int, int, int]]) -> list[Parity]:
    """Compare an ONNX file in onnxruntime with the network in PyTorch on random frames of some shapes.

    Raises:
        ImportError: the extra `export` is not installed.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    results = []
    for shape in shapes:
        frames = network.frames(*shape, seed=1)
        with torch.no_grad():
            expected = network(*frames)
        fed = {name: frame.numpy() for name, frame in zip(network.inputs, frames, strict=True)}
        given: list[Any] = list(session.run(list(network.outputs), fed))
        results.append(Parity(shape, dict(zip(network.outputs, map(_difference, given, expected), strict=True))))
    return results


def program_parity(
    network: Deployed, program: torch.export.ExportedProgram, shapes: Sequence[tuple[int, int, int]]
) -> list[Parity]:
    """Compare a program of torch.export with the network on random frames of some shapes.

    Raises:
        ValueError: the program does not take one of the shapes: tracing took a size of its example for granted.
    """
    run, results = program.module(), []
    for shape in shapes:
        frames = network.frames(*shape, seed=1)
        with torch.no_grad():
            try:
                given = [x.numpy() for x in run(*frames)]
            except AssertionError as error:
                raise _refusal(error, None) from error
            differences = [_difference(*pair) for pair in zip(given, network(*frames), strict=True)]
        results.append(Parity(shape, dict(zip(network.outputs, differences, strict=True))))
    return results


def _refusal(error: Exception, size: tuple[int, int] | None) -> ValueError:
    """Return the error that says for which images a network cannot be exported, and what to do."""
    sizes = f"images of {size[0]}x{size[1]}" if size else "images of any size"
    hint = "" if size else "; give one --size that it takes"
    return ValueError(f"the network cannot be exported for {sizes}: {_reason(error)}{hint}")


def _reason(error: BaseException) -> str:
    """Return the beginning of what the first of a chain of errors said."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:200]


def _difference(given: np.ndarray, expected: Tensor) -> float:
    """Return the largest difference, relative to the largest expected value where that is above 1."""
    if given.shape != tuple(expected.shape):
        return float("inf")
    truth = expected.numpy()
    return float(np.abs(given - truth).max() / max(1.0, np.abs(truth).max()))
