"""Queues, and the threads that serve them."""
