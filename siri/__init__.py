"""SIRI: reinforcement learning on reasoning models with an oscillating cap on the response length."""

__version__ = "0.1.0"
