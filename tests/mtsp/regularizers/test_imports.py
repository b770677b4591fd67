"""The regularizers need PyTorch and nothing else."""

import subprocess
import sys

HEAVY = ("pydantic", "yaml", "accelerate", "safetensors", "mtsp.fisher", "mtsp.files", "mtsp.training", "cv2", "numba")


def test_importing_a_regularizer_imports_nothing_beyond_torch() -> None:
    program = (
        "import sys, torch; before = set(sys.modules); from mtsp.regularizers import L2SP; "
        "print(*sorted(set(sys.modules) - before))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert "mtsp.regularizers.members" in found
    assert not [name for name in found if name.startswith(HEAVY)]
