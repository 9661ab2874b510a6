"""Recurrent layers written as a few integer operations a step: what they compute, and with which scales."""
