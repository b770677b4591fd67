"""Configs that are shipped, as against those that users keep beside them."""

import subprocess
from pathlib import Path


def shipped(configs: Path) -> list[Path]:
    """Return the experiments in `configs` that git tracks; all of them where there is no git.

    Launch files for Accelerate and settings of tools/adapt.py are no experiments, and configs/own/ is for users.
    """
    command = ["git", "-C", str(configs), "ls-files", "-z", "*.yaml"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
        paths = [configs / name for name in listed if name]
    except (OSError, subprocess.CalledProcessError):
        paths = list(configs.rglob("*.yaml"))
    return sorted(path for path in paths if path.exists() and path.parent.name not in ("accelerate", "adapt", "own"))
