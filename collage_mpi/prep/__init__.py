"""Turns users' pictures and arrays into shards: `listing` and `tars` find the pictures, `plan`
assigns them to shards, `work` makes one shard, `pool` runs many at once.
"""
