"""All uses of PyTorch's private names in this project: one of its exporter's errors has no public one.

A test fails if a release removes one of them.
"""

import torch

#: What ``torch.export`` and ``torch.onnx`` raise for a model that they cannot take.
EXPORT_ERRORS = (torch.onnx.OnnxExporterError, torch._dynamo.exc.TorchDynamoException)
