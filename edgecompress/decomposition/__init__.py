"""Matrices and convolution kernels as products of smaller ones: arithmetic on arrays, nothing of Keras."""
