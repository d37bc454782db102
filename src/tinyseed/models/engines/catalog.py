"""The list of engines beside torch itself."""

from tinyseed.models.engines.base import EngineSpec
from tinyseed.models.engines.compiled import COMPILE
from tinyseed.models.engines.onnx import INT8, ONNX

ENGINES: dict[str, EngineSpec] = {spec.name: spec for spec in (ONNX, INT8, COMPILE)}
