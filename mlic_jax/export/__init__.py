"""Models as they leave: graphs and bundles that run without JAX and this package."""
