"""Networks that PRISM's experts can be built on, by name.

A further one is a class with the methods of :class:`~prism_plugin.nn.backbones.backbone.Backbone`, and a line here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from prism_plugin.config import ModelOptions
from prism_plugin.nn.backbones.backbone import Backbone
from prism_plugin.nn.backbones.cartnet import CartNet
from prism_plugin.nn.backbones.ecomformer import EComFormer
from prism_plugin.nn.backbones.icomformer import IComFormer

__all__ = ["BACKBONES"]

BACKBONES: Mapping[str, Callable[[ModelOptions], Backbone]] = MappingProxyType(
    {"cartnet": CartNet, "icomformer": IComFormer, "ecomformer": EComFormer}
)
