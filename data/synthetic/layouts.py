"""Layouts of published data sets in which synthetic data can be written."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from data.synthetic.clips import SyntheticConfig
from data.synthetic.dead_leaves import DeadLeavesConfig, write_dead_leaves
from data.synthetic.scenes import ScenesConfig, write_scenes
from data.synthetic.writers import write_davis, write_flying_chairs, write_scene_flow
from mtsp.config import Config


class Layout(NamedTuple):
    """A layout: the config of the synthetic data, the writer, and defaults that differ from the config's defaults."""

    config: type[Config]
    write: Callable[..., None]
    defaults: Mapping[str, Any]


_SMALL = {"clips": 8, "frames": 10, "height": 270, "width": 480, "objects": [2, 6]}
LAYOUTS: dict[str, Layout] = {
    "davis": Layout(
        SyntheticConfig,
        write_davis,
        {
            "clips": 20, "frames": 12, "height": 240, "width": 432, "motion": 4.0, "cue": 0.7,
            "objects": [1, 2], "distractors": [2, 6], "object_size": [0.12, 0.35],
        },
    ),
    "flying_chairs": Layout(
        SyntheticConfig,
        write_flying_chairs,
        {"clips": 500, "height": 384, "width": 512, "objects": [4, 12]},
    ),
    "monkaa": Layout(SyntheticConfig, partial(write_scene_flow, name="Monkaa"), _SMALL),
    "driving": Layout(SyntheticConfig, partial(write_scene_flow, name="Driving"), _SMALL),
    "pascal_context": Layout(ScenesConfig, write_scenes, {}),
    "dead_leaves": Layout(DeadLeavesConfig, write_dead_leaves, {}),
}  # fmt: skip
"""Layouts by the name of the data set that uses them."""
