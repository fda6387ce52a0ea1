"""What a trained run is handed on as: predictions, a model card, ONNX."""
