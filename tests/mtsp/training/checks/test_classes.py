"""Classes from which nothing can be learned."""

from types import SimpleNamespace
from typing import Any

import pytest

from mtsp.config import ConfigError
from mtsp.training.checks.classes import align_classes


def experiment(*evaluated: str) -> Any:
    return SimpleNamespace(
        evaluation=SimpleNamespace(data=evaluated),
        train=SimpleNamespace(entries=["train"]),
        model=SimpleNamespace(classes=1),
    )


def test_a_single_class_is_refused() -> None:
    data: Any = {"train": SimpleNamespace(classes=("cat",), kind="labels")}
    with pytest.raises(ConfigError, match=r"data\.train has one class, cat: every prediction is right"):
        align_classes(experiment(), data)
