"""A server that spends less on each request when traffic grows, and gives quality back when it is quiet."""
