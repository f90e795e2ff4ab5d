"""A trained model as one ONNX file, prototypes inside, that needs neither torch nor this package."""

from protoseg.export.onnx import Difference, compare_onnx, export_onnx
