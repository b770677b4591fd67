"""Memory and time of kept anchors, computed from their bytes."""

import pytest

from tools.bench.regularizers import LINK_RATE, MEMORY_RATE, SIZES, computed

BLOCK = 4 * 2**24 / 2**30
"""GiB of 16 M numbers in float32."""


@pytest.mark.parametrize(
    ("way", "gib", "seconds"),
    [
        ("float32", 4e9 / 2**30, 12e9 / MEMORY_RATE),
        ("`anchor_dtype=torch.bfloat16`", 2e9 / 2**30 + BLOCK, 18e9 / MEMORY_RATE),
        ("`offload=True`", BLOCK, 16e9 / MEMORY_RATE + 4e9 / LINK_RATE),
    ],
)
def test_a_billion_anchors_take_their_bytes_and_a_block(way: str, gib: float, seconds: float) -> None:
    assert computed(1e9, way) == pytest.approx((gib, 1e3 * seconds))


def test_a_small_network_is_one_block() -> None:
    assert computed(1e6, "`offload=True`")[0] == pytest.approx(4e6 / 2**30)


def test_seven_billion_are_twenty_six_gib() -> None:
    assert round(computed(SIZES["7 B"], "float32")[0], 1) == 26.1
