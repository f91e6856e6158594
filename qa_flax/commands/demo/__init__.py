"""The embedded default: generated questions, a tiny BERT, and the whole of the package at work."""

from qa_flax.commands.demo.demo import run_demo

__all__ = ["run_demo"]
