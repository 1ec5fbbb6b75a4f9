"""Training and measuring networks on shards.

Owns: settings, batches made on the fly, the loop, checkpoints, accuracy and speed.
Does not know: ranks, how a job uses the networks. Importing it imports no torch.
"""
