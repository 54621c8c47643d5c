"""The quality lab: many ways of coding on the same windows, with the same exact tokens, at the bits they take."""
