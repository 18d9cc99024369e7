"""Encoders that nearfar did not train: torchvision's, timm's, transformers', ONNX files and callables, judged alike."""
