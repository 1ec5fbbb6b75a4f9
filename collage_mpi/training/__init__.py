"""Trains networks on shards, and measures their accuracy and speed. Importing this package does not
import torch.
"""
