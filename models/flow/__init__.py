"""Optical flow networks. A config selects one by `name`, as SegFlow's flow branch or alone."""

from typing import Annotated, Any

from pydantic import Discriminator, Tag

from models.flow.flownets import FlowNetSConfig
from models.flow.pwcnet import PwcNetConfig
from models.flow.raft import RAFTConfig
from models.flow.spynet import SPyNetConfig


def _name(section: Any) -> Any:
    return section.get("name", "flownets") if isinstance(section, dict) else getattr(section, "name", "flownets")


AnyFlow = Annotated[
    Annotated[FlowNetSConfig, Tag("flownets")]
    | Annotated[PwcNetConfig, Tag("pwcnet")]
    | Annotated[RAFTConfig, Tag("raft")]
    | Annotated[SPyNetConfig, Tag("spynet")],
    Discriminator(_name),
]
"""Config of any flow network; without a name, of FlowNetS."""
