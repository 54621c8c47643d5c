"""Experiments that check what a report claimed, each runnable again with one command."""

from pqkv.reproduce.catalog import EXPERIMENTS, experiment
from pqkv.reproduce.run import Outcome, Request, reproduce

__all__ = ["EXPERIMENTS", "Outcome", "Request", "experiment", "reproduce"]
