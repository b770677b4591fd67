"""Every program answers --help at once, reports errors alike, and runs its own checkout's packages."""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from mtsp.command_line import program

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = sorted(path.name for path in (ROOT / "tools").glob("*.py") if "__main__" in path.read_text())
HEAVY = {"torch", "numpy", "cv2", "accelerate", "wandb", "matplotlib", "pydantic", "numba", "PIL", "rich", "timm"}


@pytest.fixture
def strangers(tmp_path: Path) -> Path:
    """A folder on the path with other packages that are called as ours are."""
    for name in ("tools", "models", "data"):
        (tmp_path / "path" / name).mkdir(parents=True)
        (tmp_path / "path" / name / "__init__.py").write_text(f"raise ImportError('another package called {name}')")
    return tmp_path / "path"


def run(command: Sequence[str], strangers: Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"PYTHONPATH": str(strangers), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=strangers.parent, check=False)


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_reports_errors_and_logs_alike(name: str) -> None:
    source = (ROOT / "tools" / name).read_text()
    assert "\n@program\ndef main(" in source
    assert "basicConfig" not in source
    assert source.endswith("sys.exit(main())\n")


@pytest.mark.parametrize("name", PROGRAMS)
def test_help_imports_nothing_that_takes_long(name: str, strangers: Path) -> None:
    found = run([sys.executable, "-X", "importtime", str(ROOT / "tools" / name), "--help"], strangers)
    assert found.returncode == 0, found.stderr[-2000:]
    assert found.stdout.startswith("usage: ")
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in found.stderr.splitlines()}
    assert "mtsp" in imported
    assert not imported & HEAVY


def test_the_regularizers_need_torch_alone(strangers: Path) -> None:
    code = f"import sys, torch; sys.path.insert(0, {str(ROOT)!r}); before = set(sys.modules);"
    code += "from mtsp.regularizers import L2SP; print(set(sys.modules) - before)"
    found = run([sys.executable, "-c", code], strangers)
    imported = {name.partition(".")[0] for name in re.findall(r"'([\w.]+)'", found.stdout)}
    assert "mtsp" in imported, found.stderr
    assert not imported & (HEAVY - {"torch", "numpy"})


@pytest.mark.parametrize(
    "launcher",
    [
        ["-m", "accelerate.commands.launch", "--num_processes", "1", "--cpu"],
        ["-m", "torch.distributed.run", "--nproc-per-node", "1"],
    ],
)
def test_a_launched_run_and_its_workers_use_this_checkout(
    launcher: list[str], config: Path, tmp_path: Path, strangers: Path
) -> None:
    words = [str(ROOT / "tools" / "train.py"), "--config", str(config), "--run-dir", str(tmp_path / "run")]
    words += ["train.steps=1", "train.workers=1", "evaluation.data=[]", "evaluation.every=null"]
    found = run([sys.executable, *launcher, *words], strangers)
    assert found.returncode == 0, found.stderr[-3000:]
    assert (tmp_path / "run" / "weights.safetensors").is_file()


@pytest.mark.parametrize("error", [ValueError, OSError, FloatingPointError, MemoryError])
def test_what_a_person_can_mend_is_one_line_and_exit_code_1(
    error: type[Exception], capsys: pytest.CaptureFixture[str]
) -> None:
    @program
    def main(arguments: Sequence[str] | None = None) -> int:
        raise error("a reason")

    assert main() == 1
    assert capsys.readouterr().err == "error: a reason\n"


def test_any_other_error_keeps_its_traceback() -> None:
    @program
    def main(arguments: Sequence[str] | None = None) -> int:
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        main()


def test_ctrl_c_is_exit_code_130(capsys: pytest.CaptureFixture[str]) -> None:
    @program
    def main(arguments: Sequence[str] | None = None) -> int:
        raise KeyboardInterrupt

    assert main() == 130
    assert capsys.readouterr().err == "interrupted\n"
