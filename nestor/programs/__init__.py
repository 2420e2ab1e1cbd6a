"""Programs for other runtimes: a network in, files out that need no Nestor to run."""
