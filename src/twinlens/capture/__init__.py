"""A call of any torch module as a graph, and where in it the sites of a model are.

Runs inside the environments of other implementations too: nothing but torch and the declaration.
"""

from twinlens.capture.align import align
from twinlens.capture.calling import device_of, invoke
from twinlens.capture.calls import record_calls, takes_cache
from twinlens.capture.graft import Graft, graft
from twinlens.capture.graph import Graph
from twinlens.capture.placement import Anchor, Place, Placement
from twinlens.capture.recorder import capture, compared_weights, placed, record
from twinlens.capture.tracer import trace

__all__ = [
    "Anchor",
    "Graft",
    "Graph",
    "Place",
    "Placement",
    "align",
    "capture",
    "compared_weights",
    "device_of",
    "graft",
    "invoke",
    "placed",
    "record",
    "record_calls",
    "takes_cache",
    "trace",
]
