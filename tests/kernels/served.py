"""Batches whose codes meet a query of their own, with a bias by position, gains of values and int8 centroids."""

import numpy as np

TURNING = tuple(float(theta) for theta in 1e5 ** (-np.arange(0, 1, 1 / 5)))
SERVED = {"turning": (0.0, *TURNING), "gains": True, "int8": True}
PARTS = [{"turning": ()}, {"turning": TURNING}, {"gains": True}, {"int8": True}, SERVED]
