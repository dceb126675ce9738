"""The tests of the cluster: a mirror of `cluster/`, and contract/, simulation/, system/."""
