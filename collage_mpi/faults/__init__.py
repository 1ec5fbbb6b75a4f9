"""Which ranks have gone, noticed in layers."""
