"""Links between nodes: handshake, log, and nodes on a network in memory and on real sockets."""
