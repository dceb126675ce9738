"""Who belongs to the cluster, kept in a store outside: a lease for each node, and a list.

The store decides, not the nodes: there is no consensus and no gossip here.
"""
