"""Middlebury: unknown flow, and pairs without flow."""

from pathlib import Path

import numpy as np

from data.files.flow_formats.flo import write_flo
from data.files.images import write_image
from data.flow.middlebury import MiddleburyConfig
from tests.data.flow.files import HEIGHT, WIDTH, first, flow, gray, made


def test_middlebury_masks_unknown_flow_and_lists_pairs_without_it_on_request(tmp_path: Path) -> None:
    for scene in ("Urban2", "Walking"):
        for n in (10, 11):
            write_image(made(tmp_path / "other-data" / scene / f"frame{n}.png"), gray(n))
    known = np.ones((HEIGHT, WIDTH), bool)
    known[0, 3] = False
    write_flo(made(tmp_path / "other-gt-flow" / "Urban2" / "flow10.flo"), flow(4), known)
    val = MiddleburyConfig(name="middlebury", root=tmp_path).build()
    assert val.ids == ["Urban2"]
    assert first(val[0]) == (10, 11, 4.0)
    np.testing.assert_array_equal(val[0].get("flow_valid"), known)
    every = MiddleburyConfig(name="middlebury", root=tmp_path, split="all").build()
    assert every.ids == ["Urban2", "Walking"]
    assert set(every[1]) == {"name", "frame", "next_frame"}
    assert set(every.labels(1)) == {"name"}
