"""From users' pictures and arrays to shards.

Owns: nothing but the name; see `listing` (what there is), `plan` (which shard gets
what), `work` (one shard), `pool` (many at once).
Does not know: networks.
"""
