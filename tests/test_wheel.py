"""The wheel gives the regularizers to any training loop, with PyTorch and nothing else."""

import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PYTORCH = (
    *("torch", "torchgen", "functorch", "filelock", "fsspec", "jinja2", "markupsafe", "mpmath", "networkx", "sympy"),
    *("typing_extensions.py", "setuptools", "pkg_resources", "_distutils_hack", "triton", "nvidia", "cuda"),
)
"""What `pip install torch` puts into site-packages. NumPy is not of it."""

LOOP = """
import torch
from mtsp.anchors import capture, fingerprint
from mtsp.regularizers import L2SP

model = torch.nn.Linear(3, 2)
anchors = capture(model, ["weight"])
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
L2SP(model, anchors=anchors, alpha=0.1, beta=0.01).attach(optimizer)
for _ in range(10):
    optimizer.zero_grad()
    model(torch.ones(4, 3)).square().mean().backward()
    optimizer.step()
print(len(fingerprint(anchors)), float(model(torch.ones(1, 3)).square().mean()) < 1)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    builder = pytest.importorskip("hatchling.builders.wheel", reason="hatchling builds the wheel")
    folder = tmp_path_factory.mktemp("wheel")
    return Path(next(builder.WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])))


def test_the_wheel_holds_the_framework_alone(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "mtsp/regularizers/members.py" in names
    assert {name.partition("/")[0] for name in names if ".dist-info" not in name} == {"mtsp"}


@pytest.fixture(scope="module")
def torch_alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that shows PyTorch and what it requires of what is installed here, and nothing else."""
    folder = tmp_path_factory.mktemp("packages")
    site = Path(importlib.util.find_spec("torch").origin).parent.parent  # pyright: ignore[reportOptionalMemberAccess, reportArgumentType]
    for name in PYTORCH:
        if (site / name).exists():
            (folder / name).symlink_to(site / name)
    return folder


def run(program: str, packages: Path, *more: Path) -> subprocess.CompletedProcess[str]:
    """Run a program that sees the standard library and these folders: no site-packages, no checkout."""
    paths = [str(path) for path in (*more, packages)]
    command = [sys.executable, "-I", "-S", "-c", f"import sys\nsys.path += {paths!r}\n{program}"]
    return subprocess.run(command, cwd=packages, capture_output=True, text=True, check=False)


def test_the_regularizers_of_the_wheel_need_pytorch_alone(wheel: Path, torch_alone: Path) -> None:
    done = run(LOOP, torch_alone, wheel)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["64", "True"]


def test_nothing_else_is_there(torch_alone: Path, wheel: Path) -> None:
    for name in ("numpy", "pydantic", "accelerate"):
        assert f"No module named '{name}'" in run(f"import {name}", torch_alone, wheel).stderr
