"""What `cluster status` knows, for Prometheus: a process of its own, which asks when it is asked.

Gateway and workers have nothing to do with it, and serve on whatever becomes of it.
"""
