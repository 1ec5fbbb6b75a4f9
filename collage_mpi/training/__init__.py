"""Training of networks on shards, and measuring of their accuracy and speed. Importing this package
imports no torch.
"""
