"""Ray: a session of ours or a cluster, and the ranks of an engine on CPUs.

Imports no other room.
"""
