"""Attention on codes whose centroids are bytes: look-ups and products of integers, vectors of tokens at a time."""
