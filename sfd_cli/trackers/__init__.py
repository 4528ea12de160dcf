"""Curves, pictures and scores of `metrics/`, sent to where people look: TensorBoard, Weights & Biases, MLflow."""
