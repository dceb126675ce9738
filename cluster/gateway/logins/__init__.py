"""Users across nodes: the node that owns a user's key decides which session of the cluster it is.

Each node has a table of its own sessions' users, and a directory of the users whose keys it owns,
wherever their sessions are. What is for a user goes by its owner.
"""
