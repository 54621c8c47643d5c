"""Sweeps: one file says which cells of a command are run, where they survive, and how two folders are compared."""
