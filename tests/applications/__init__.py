"""Applications that system tests run, each as a user would: a module and its directory."""
