"""What models are trained for: optimizers, losses and metrics, of Keras 3 and of tf_keras."""
