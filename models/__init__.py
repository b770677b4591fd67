"""Networks. A network is chosen in a config by its `name`; to add one, add its config here."""

from typing import Annotated

from pydantic import Field

from models.classifier import ClassifierConfig
from models.encnet.network import EncNetConfig
from models.flow.flownets import FlowNetConfig
from models.segflow.network import SegFlowConfig

AnyModel = Annotated[SegFlowConfig | FlowNetConfig | EncNetConfig | ClassifierConfig, Field(discriminator="name")]
"""The config of any network here."""
