"""Several machines, with Ray Serve: the only package that knows Ray."""
