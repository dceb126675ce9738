"""Sessions between nodes: mutual proof of the cluster's secret, and logs that outlive connections.

The node with the smaller id connects, by the library's own Connect. Nothing of a peer is read
before it has proved that it knows the secret, but for messages of a fixed size.
"""
