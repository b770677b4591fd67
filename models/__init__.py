"""Networks. A config selects a network by `name`; to add a network, add its config to `AnyModel`."""

from typing import Annotated

from pydantic import Field

from models.classifier import ClassifierConfig
from models.encnet import EncNetConfig
from models.flow.flownets import FlowNetSConfig
from models.flow.pwcnet import PwcNetConfig
from models.flow.raft import RAFTConfig
from models.flow.spynet import SPyNetConfig
from models.segflow import SegFlowConfig

AnyModel = Annotated[
    SegFlowConfig | FlowNetSConfig | PwcNetConfig | RAFTConfig | SPyNetConfig | EncNetConfig | ClassifierConfig,
    Field(discriminator="name"),
]
"""Config of any network in this package."""
