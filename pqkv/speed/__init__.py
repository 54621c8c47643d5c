"""How fast attention on codes is: cold-cache timing beside the strongest exact attention of the same run."""
