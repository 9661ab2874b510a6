"""The tf_keras world: the only place that imports tf_keras or TensorFlow Model Optimization (TFMOT)."""
