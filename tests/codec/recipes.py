"""What several statements of recipes share, in plain NumPy."""

import numpy as np


def hadamard_of(size):
    """Entry (i, j) is -1 to the number of bits that i and j share (Sylvester), over the root of the size."""
    return np.array([[(-1) ** bin(i & j).count("1") for j in range(size)] for i in range(size)]) / np.sqrt(size)


def half(x):
    """Rounded to float16."""
    return np.float64(np.float16(x))


def rounded(numbers, bits):
    """Numbers (n,) between their least and largest, in 2**bits even steps whose length is kept in float16."""
    low = half(min(numbers))
    step = half((max(numbers) - min(numbers)) / (2**bits - 1))
    if step == 0:
        return np.full(len(numbers), low)
    return np.array([low + step * min(max(round((x - low) / step), 0), 2**bits - 1) for x in numbers])


def nearest_of(points, x):
    """The nearest of points (C, d) to x (d,)."""
    return points[np.argmin(((points - x) ** 2).sum(-1))]


def turned(vectors, positions, frequencies, sign=1):
    """Vectors (..., T, D) in float64, pairs (i, i + D/2) turned as complex numbers by sign * position * frequency."""
    vectors = np.array(vectors, dtype=np.float64)
    half_dim = len(frequencies)
    z = vectors[..., :half_dim] + 1j * vectors[..., half_dim:]
    z = z * np.exp(sign * 1j * np.asarray(positions)[:, None] * np.asarray(frequencies))
    return np.concatenate([z.real, z.imag], -1)


def agree(got, expected, share=0.995, tolerance=2e-3):
    """All numbers but a few ties of rounding are the same, up to float32."""
    got, expected = np.asarray(got, dtype=np.float64), np.asarray(expected)
    assert got.shape == expected.shape
    close = np.abs(got - expected) <= tolerance * np.abs(expected).max()
    assert close.mean() >= share, f"{1 - close.mean():.2%} differ"
