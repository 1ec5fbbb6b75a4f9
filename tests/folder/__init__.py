"""A shared file system that misbehaves, as NFS and its like do: one model with two ways to use it.

`server` is the truth, `host` what one host does and sees, `misbehaviour` what a seed draws. `store`
plays hosts in one process on virtual time; `mount` gives each host a mount point by FUSE.
"""
