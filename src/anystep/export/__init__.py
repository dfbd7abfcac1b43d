"""A model as files that draw without PyTorch: ONNX, `torch.export`, plain JSON, and a program of NumPy alone."""

from anystep.export.export import Exported, Request, export_model

__all__ = ["Exported", "Request", "export_model"]
